"""Delimited text as the world writes it: every encoding, separator and decimal mark gives the same table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from labelfree.data import sources
from labelfree.data.delimited import read_start
from labelfree.data.events import LogOptions, read_log
from labelfree.data.recordings import ReadOptions, read_recordings
from labelfree.data.sources import read_head, read_table
from labelfree.data.tables import open_rows
from labelfree.errors import LabelfreeError
from labelfree.modalities.table import Table
from labelfree.modalities.text import Text
from labelfree.training.plan import recognise

ROWS = [("Müller", 1.5, 3), ("José", 22.25, 4), ("Weiß", -0.125, 5)]
TABLE = pa.table({"größe": [row[0] for row in ROWS], "x": [row[1] for row in ROWS], "n": [row[2] for row in ROWS]})


def text_of(separator: str = ",", decimal: str = ".") -> str:
    lines = [separator.join((name, str(x).replace(".", decimal), str(n))) for name, x, n in ROWS]
    return "\n".join([separator.join(TABLE.column_names), *lines]) + "\n"


def written(folder: Path, text: str, encoding: str = "utf-8", name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32"])
@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", ","), ("|", ",")])
def test_every_way_to_write_a_table_gives_it(tmp_path: Path, encoding: str, separator: str, decimal: str) -> None:
    path = written(tmp_path, text_of(separator, decimal), encoding)
    assert read_table(path).equals(TABLE)
    assert read_head(path, 2).equals(TABLE.slice(0, 2))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_the_head_of_a_long_file_has_its_form(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, text_of(";", ",") + "Zoë;2,5;6\n" * 99, encoding)
    monkeypatch.setattr(sources, "HEAD_BYTES", 201)
    monkeypatch.setattr(sources, "read_table", None)
    assert read_head(path, 3).equals(TABLE)


def test_a_foreign_character_after_the_head_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "name,n\n" + "plain,1\n" * 50 + "José,2\n", "cp1252")
    monkeypatch.setattr(sources, "HEAD_BYTES", 100)
    assert read_table(path).to_pylist()[-1] == {"name": "José", "n": 2}


@pytest.mark.parametrize("place", ["name", "cell", "text"])
def test_a_damaged_byte_leaves_the_others_in_their_encoding(tmp_path: Path, place: str) -> None:
    content = "größe,n\n".encode() + "naïve José,1\n".encode() * 9
    at = {"name": 1, "cell": len(content) - 4, "text": len(content) - 4}[place]
    path = tmp_path / ("a.txt" if place == "text" else "a.csv")
    path.write_bytes(content[:at] + b"\xff" + content[at:])
    read = Text().open(path).texts([1])[0] if place == "text" else read_table(path).column(0).to_pylist()[0]
    assert str(read).startswith("naïve José")


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";")])
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path, name: str, mark: str) -> None:
    texts = [f"the words of row {number}" for number in range(300)]
    texts[9], texts[200], texts[250] = '"Hello" there', '"Good morning', 'a 5" pipe and "more'
    lines = [f"{number}{mark}{text}{mark}{number % 2}\n" for number, text in enumerate(texts)]
    path = written(tmp_path, f"n{mark}text{mark}label\n{''.join(lines)}", name=name)
    ragged: dict[int, str] = {}
    assert read_table(path, ragged=ragged).column("text").to_pylist() == texts
    assert not ragged
    assert read_start(path.read_bytes(), path.suffix).column("text").to_pylist() == texts


def test_lines_in_quotes_stay_in_their_cell_beside_quotes_inside_of_others(tmp_path: Path) -> None:
    text = 'n,text\n1,"two\nlines"\n2,a 5" pipe\n3,"he said ""no"""\n'
    assert read_table(written(tmp_path, text)).column("text").to_pylist() == ["two\nlines", 'a 5" pipe', 'he said "no"']


def test_thousands_of_an_english_table_are_no_decimals(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "city\tpeople\nA\t1,234\nB\t56,789\n", name="table.tsv"))
    assert found.column("people").to_pylist() == ["1,234", "56,789"]


def test_points_between_thousands_are_none_beside_decimal_commas(tmp_path: Path) -> None:
    rows = ["Ort;Preis;Menge;Version", "A;1,5;3.000;1.234.567", "B;1.234;12.500;1.2.0", "C;;800;1.3.0"]
    found = read_table(written(tmp_path, "\n".join(rows)))
    assert found.column("Preis").to_pylist() == [1.5, 1234, None]
    assert found.column("Menge").to_pylist() == [3000, 12500, 800]
    assert found.column("Version").to_pylist() == ["1.234.567", "1.2.0", "1.3.0"]


@pytest.mark.parametrize("row", ["0.125;1,5", "1.25;1,5"])
def test_a_decimal_point_stays_one(tmp_path: Path, row: str) -> None:
    found = read_table(written(tmp_path, f"a;b\n1.234;2,5\n{row}\n"))
    assert found.column("a").to_pylist() == [1.234, float(row.split(";")[0])]


def test_decimal_commas_beside_an_odd_cell_are_no_thousands(tmp_path: Path) -> None:
    path = written(tmp_path, "ort;länge\nA;1,234\nB;Fehler\nC;2,345\nD;1.234,5\n10.100.200,x;3,456\n")
    found = read_table(path)
    assert found.column("länge").to_pylist() == ["1.234", "Fehler", "2.345", "1234.5", "3.456"]
    assert found.column("ort")[-1].as_py() == "10.100.200,x"


@pytest.mark.parametrize("text", ['text\n"one; two, three"\n"four; five"\n', "text;kind,n\nx;y,2\nz,3\n"])
def test_separators_inside_cells_separate_nothing(tmp_path: Path, text: str) -> None:
    assert read_table(written(tmp_path, text)).column_names == text.splitlines()[0].split(",")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(bytes(range(256)))
    with pytest.raises(LabelfreeError, match="cannot be read as csv: binary where text is expected"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("first", "header"),
    [("0.5,1.5,3", False), ("7.25,7.25,7.25", False), ("0,1,2", True), ("2019,2020,2021", True), ("a,1,2", True)],
)
def test_a_first_row_of_numbers_that_do_not_count_through_is_data(tmp_path: Path, first: str, header: bool) -> None:
    path = written(tmp_path, f"{first}\n2.5,3.5,4\n8.5,1.5,6\n")
    names = first.split(",") if header else ["f0", "f1", "f2"]
    for table in (read_table(path), read_head(path)):
        assert (table.column_names, len(table)) == (names, 2 if header else 3)
    assert len(Table().open(path)) == (2 if header else 3)


def test_every_kind_reads_tables_of_another_encoding(tmp_path: Path) -> None:
    texts = [f"Señor número {n} schläft lange und träumt von größeren Dingen;{'ab'[n % 2]}" for n in range(30)]
    path = written(tmp_path, "\n".join(["text;kind", *texts]), "cp1252")
    assert recognise(path)[0] == "text"
    assert Text().open(path).texts([3]) == [texts[3].partition(";")[0]]


def test_columns_that_are_numbers_in_one_file_and_words_in_another_fit_together(tmp_path: Path) -> None:
    written(tmp_path, "a,b\n1,2.5\n2,3.5\n", name="1.csv")
    written(tmp_path, "a,b\nx,4.5\n,5.5\n", name="2.csv")
    rows = open_rows(tmp_path)
    assert rows.read(["a", "b"]).to_pydict() == {"a": ["1", "2", "x", ""], "b": [2.5, 3.5, 4.5, 5.5]}


@pytest.mark.parametrize("rows", [30, 200_000])
def test_a_row_of_too_many_or_few_cells_is_missing_and_listed(tmp_path: Path, rows: int) -> None:
    lines = [f"{n},{n % 7}.5" for n in range(rows)]
    lines[4], lines[rows - 2] = "4,1,2", "7"
    path = written(tmp_path, "\n".join(["a,b", *lines]) + "\n")
    dataset = Table().open(path)
    why = {4: "3 cells where 2 are expected", rows - 2: "1 cells where 2 are expected"}
    assert [(bad.index, bad.name, bad.reason) for bad in dataset.unreadable] == [
        (row, f"row {row}", words) for row, words in why.items()
    ]
    assert (len(dataset), dataset.source_count(), dataset.describe().facts["unreadable"]) == (rows, rows, "2")
    assert np.flatnonzero(np.isnan(dataset.values).all(axis=1)).tolist() == list(why)
    assert len(read_head(path)) == min(rows, 1000)
    with pytest.raises(LabelfreeError, match="Expected 2 columns, got"):
        read_table(path)


def test_odd_rows_keep_their_place_without_a_header_and_in_a_folder(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        written(tmp_path, "\n".join(["1.5,2.25"] * 19 + ["3,4,5", "6.5,7"]) + "\n", name=name)
    rows = open_rows(tmp_path)
    assert list(rows.ragged) == [19, 40]
    assert rows.read(["f1"]).column("f1").to_pylist()[18:21] == [2.25, None, 7]


def test_a_file_of_rows_of_all_lengths_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n" + "1,2\n" * 8 + "1,2,3\n" * 2)
    with pytest.raises(LabelfreeError, match="2 of its 10 rows have another number of cells than the first"):
        open_rows(path)


def test_odd_rows_of_texts_events_and_series_are_said(tmp_path: Path) -> None:
    texts = [f"a sentence of several words with the number {n},x" for n in range(20)]
    documents = Text().open(written(tmp_path, "\n".join(["text,kind", *texts, "one, two, three"])))
    assert [item.name for item in documents.unreadable] == ["table.csv: row 20"]
    assert (documents.describe().facts["unreadable"], documents.texts([20])) == ("1", [""])
    log = read_log(written(tmp_path, "time,source,target\n" + "1,2,3\n" * 20 + "1,2\n"), LogOptions())
    assert [(item.index, item.reason) for item in log.unreadable] == [(20, "2 cells where 3 are expected")]
    steps = "\n".join(["time,x", *(f"{n},{n}.5" for n in range(20)), "20,1,2"])
    found = read_recordings(written(tmp_path, steps), ReadOptions())
    assert found.facts["rows of missing values"] == "1, with too many or too few cells"


def test_a_record_longer_than_a_block_is_read(tmp_path: Path) -> None:
    long = "word " * 500_000
    path = written(tmp_path, f'a,text\n1,x\n2,"{long}"\n')
    assert read_table(path).column("text")[1].as_py() == long
    path = written(tmp_path, f'{{"text": "x"}}\n{{"text": "{long}"}}\n', name="table.jsonl")
    assert read_table(path).column("text")[1].as_py() == long


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_may_be_a_list_of_records(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, '[{"a": 1},\n {"a": 2, "b": "ü"}]', encoding, "table.json")
    assert read_table(path).to_pydict() == {"a": [1, 2], "b": [None, "ü"]}
    with pytest.raises(LabelfreeError, match="cannot be read as json: it holds a list, and not of records"):
        read_table(written(tmp_path, "[1, 2]", name="table.json"))


def test_values_of_several_types_in_json_lines_become_words(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1, "b": 2}\n{"a": "x"}\n', name="table.jsonl")
    assert read_table(path).to_pydict() == {"a": ["1", "x"], "b": [2, None]}


SENTENCES = [f"This is the sentence number {n}, and it is about {['good', 'bad'][n % 2]} things." for n in range(9)]


def test_a_file_of_texts_without_a_name_keeps_its_first_text(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f'"{text}"\n' for text in SENTENCES))
    documents = Text().open(path)
    assert documents.texts(range(9)) == SENTENCES
    assert documents.describe().facts["source"] == ("9 texts, column 'f0' of 'table.csv'; the first row holds no names")
    path = written(tmp_path, "".join(f'"{text}",{["good", "bad"][n % 2]}\n' for n, text in enumerate(SENTENCES)))
    assert read_table(path).column_names == ["f0", "f1"]


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ("text", SENTENCES),
        ("What do you think of it?", ["good", "bad"] * 5),
        ('"What do you think of it, all in all?",age', [f'"{text}",{n}' for n, text in enumerate(SENTENCES)]),
        ("What of it all then", [" ".join(SENTENCES).replace(",", "")] * 3),
    ],
)
def test_names_that_are_questions_are_names(tmp_path: Path, first: str, rest: list[str]) -> None:
    rest = rest if "," in first else [f'"{text}"' for text in rest]
    assert len(read_table(written(tmp_path, "\n".join([first, *rest])))) == len(rest)
