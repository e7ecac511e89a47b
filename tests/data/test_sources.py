"""Tables and data frames; telling what one holds costs its head, not the whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from labelfree import registry
from labelfree.data import sources
from labelfree.data.sources import hash_files, list_files, read_head, read_table, sidecar
from labelfree.data.tables import open_rows
from labelfree.errors import LabelfreeError
from labelfree.training.plan import recognise


def written(folder: Path, suffix: str, rows: int) -> Path:
    """A table of `rows` sentences, two lines each where the form allows it."""
    break_ = " " if suffix == "jsonl" else "\n"
    texts = [f"sentence number {n},{break_}of more than forty characters in all" for n in range(rows)]
    table, path = pa.table({"text": texts, "n": np.arange(rows)}), folder / f"table.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    elif suffix == "csv":
        csv.write_csv(table, path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    return path


@pytest.mark.parametrize("rows", [3, 30_000])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_head_is_the_beginning_of_the_table(tmp_path: Path, suffix: str, rows: int) -> None:
    path = written(tmp_path, suffix, rows)
    assert read_head(path, 100).equals(read_table(path).slice(0, 100))


def test_a_large_table_is_recognised_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "parquet", 3000)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole table was read")

    for name in ("read_table", "read_pandas"):
        monkeypatch.setattr(parquet, name, refuse)
    assert recognise(path)[0] == "text"


def test_a_cell_longer_than_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HEAD_BYTES", 20)
    path = written(tmp_path, "csv", 10)
    assert len(read_head(path, 100)) == 10


COLUMNS = {
    "text": ["a b", None] * 3,
    "raw": [b"x", b"yz"] * 3,
    "kind": ["u", "v"] * 3,
    "words": [["p"], ["q", "r"]] * 3,
    "n": list(range(6)),
}


def test_frames_of_pandas_and_polars_are_the_same_table() -> None:
    frames = [library.DataFrame(COLUMNS) for library in (pandas, polars)]
    tables = [sources.frame(frame) for frame in frames]
    assert [table.to_pydict() for table in tables] == [COLUMNS, COLUMNS]
    assert all(table.take([0, 5]).num_rows == 2 for table in tables)  # Arrow's functions take no views of texts
    assert [sources.frame(frame, 2).num_rows for frame in frames] == [2, 2]
    assert sources.frame(COLUMNS) is None
    assert sources.frame("text") is None


def test_files_of_polars_can_be_read(tmp_path: Path) -> None:
    frame = polars.DataFrame(COLUMNS).with_columns(polars.col("kind").cast(polars.Categorical))
    frame.write_ipc(tmp_path / "table.arrow")
    frame.write_parquet(tmp_path / "table.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert read_table(path).take([1, 4]).to_pydict() == {name: [c[1], c[4]] for name, c in COLUMNS.items()}


@pytest.mark.parametrize("look", [open_rows, recognise, sources.frame, registry.modalities()["series"]().open])
def test_a_frame_with_a_name_twice_is_refused(look: Callable[[Any], Any]) -> None:
    frame = pandas.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    with pytest.raises(LabelfreeError, match="DataFrame has several columns named 'a'"):
        look(frame)


@pytest.mark.parametrize("look", [open_rows, recognise, registry.modalities()["series"]().open])
def test_a_frame_that_is_not_computed_yet_is_refused_with_the_remedy(look: Callable[[Any], Any]) -> None:
    with pytest.raises(LabelfreeError, match=r"LazyFrame is not computed yet. Collect it first: frame.collect\(\)"):
        look(polars.LazyFrame({"a": [1, 2], "b": [3, 4]}))


@pytest.mark.parametrize("library", [pandas, polars], ids=["pandas", "polars"])
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("text", {"text": ["some words of a sentence", "and of another one"] * 20}),
        ("series", {"person": ["p"] * 50 + ["q"] * 50, "x": np.sin(np.arange(100)), "y": np.cos(np.arange(100))}),
        ("events", {"time": np.arange(40), "sender": ["a", "b"] * 20, "receiver": ["c", "d"] * 20}),
        ("graph", {"source": ["a", "b", "c"] * 9, "target": ["b", "c", "d"] * 9}),
        ("table", {"age": np.arange(40) ** 2 % 37, "job": ["x", "y"] * 20}),
    ],
)
def test_a_data_frame_is_a_source_of_every_kind_with_columns(library: Any, kind: str, columns: dict[str, Any]) -> None:
    source = library.DataFrame(columns)
    assert recognise(source)[0] == kind
    assert len(registry.modalities()[kind]().open(source))


@pytest.mark.parametrize("library", [pandas, polars], ids=["pandas", "polars"])
def test_a_column_of_texts_is_a_source(library: Any) -> None:
    source = library.Series(["some words", None, "of a sentence"])
    assert recognise(source)[0] == "text"
    assert registry.modalities()["text"]().open(source).texts(range(3)) == ["some words", "", "of a sentence"]


# ---- tables beside files


def beside(folder: Path, *lines: str) -> Path:
    (folder / "metadata.csv").write_text("\n".join(["file,kind", *lines]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        (("a/1.png,u", "b/1.png,v", "b/2.png,w"), ["u", "v", "w"]),
        (("a/1.png,u", "b/1.png,v", "2.png,w"), ["u", "v", "w"]),
        (("a/1.png,u", "b/1.png,v"), ["u", "v", None]),
    ],
)
def test_a_row_is_of_the_file_that_it_names(tmp_path: Path, lines: tuple[str, ...], kinds: list[str | None]) -> None:
    table = sidecar(beside(tmp_path, *lines), ["a/1.png", "b/1.png", "b/2.png"])
    assert table is not None
    assert table.column("kind").to_pylist() == kinds


def test_a_file_of_the_folder_itself_keeps_its_row_to_itself(tmp_path: Path) -> None:
    table = sidecar(beside(tmp_path, "1.png,u", "2.png,v"), ["1.png", "2.png", "a/1.png"])
    assert table is not None
    assert table.column("kind").to_pylist() == ["u", "v", None]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("1.png,u", "2.png,v"), r"names '1.png', and 2 files are called so, one of them 'a/1.png'. Write the paths"),
        (("a/1.png,u", "b/1.png,v", "a/1.png,w"), "has 2 rows for the file 'a/1.png'. Keep one row a file"),
    ],
)
def test_rows_that_could_be_of_several_files_are_refused(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        sidecar(beside(tmp_path, *lines), ["a/1.png", "b/1.png", "b/2.png"])


# ---- recognising


def numbers_in(path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    columns = {"age": draw.integers(0, 90, 60), "x": draw.normal(size=60), "job": draw.choice(["u", "v", "w"], 60)}
    pandas.DataFrame(columns).to_csv(path, index=False)


def test_a_folder_of_tables_is_what_its_first_table_is(tmp_path: Path) -> None:
    for number in range(2):
        numbers_in(tmp_path / f"{number}.csv", number)
    assert recognise(tmp_path)[0] == recognise(tmp_path / "0.csv")[0] == "table"


def test_a_folder_of_recordings_is_series_though_a_table_lies_beside_them(tmp_path: Path) -> None:
    for number in range(3):
        walk = np.random.default_rng(number).normal(size=(2, 90)).cumsum(axis=1)
        frame = pandas.DataFrame({"time": np.arange(90), "x": walk[0], "y": walk[1]})
        frame.to_csv(tmp_path / f"walk{number}.csv", index=False)
    numbers_in(tmp_path / "labels.csv", 0)
    assert recognise(tmp_path) == ("series", "3 files of numbers")


def test_a_folder_of_edges_and_nodes_is_a_graph_however_its_ends_are_called(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text(
        "one,other,weight\n" + "\n".join(f"{n},{n * 7 % 30},{n % 5}" for n in range(30))
    )
    numbers_in(tmp_path / "nodes.csv", 0)
    assert recognise(tmp_path)[0] == "graph"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"a,a\n1,2\n3,4\n", "several columns named 'a'"),
        ("a.csv", b"", "cannot be read as csv: Empty CSV file"),
        ("a.parquet", b"", "cannot be read as parquet: Parquet file size is 0 bytes"),
        ("a.parquet", b"PAR1 and then nothing of the kind", "cannot be read as parquet"),
        ("a.jsonl", b'{"a": 1', "cannot be read as jsonl"),
        ("a.npy", b"none", "cannot be read as an array"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelfreeError, match=words):
        recognise(tmp_path / name)


def test_an_array_is_read_however_its_ending_is_written(tmp_path: Path) -> None:
    with (tmp_path / "BIG.NPY").open("wb") as file:
        np.save(file, np.arange(3))
    assert sources.load_arrays(tmp_path / "BIG.NPY")[""].tolist() == [0, 1, 2]


def test_cells_too_long_for_the_name_of_a_file_are_texts(tmp_path: Path) -> None:
    texts = [f"{'long ' * 100}{number}" for number in range(30)]
    csv.write_csv(pa.table({"text": texts, "n": np.arange(30)}), tmp_path / "a.csv")
    assert recognise(tmp_path / "a.csv")[0] == "text"


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_telling_what_is_in_a_folder_reads_the_head_of_one_table(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, suffix, 300)
    for number in range(3):
        (tmp_path / f"table{number}.{suffix}").write_bytes(path.read_bytes())
    monkeypatch.setattr(sources, "HEAD_BYTES", 5000)
    heads, walks = [], []
    monkeypatch.setattr(sources, "read_table", None)
    monkeypatch.setattr("labelfree.modalities.pair.sources.read_table", None)
    start_of, walk = sources._start_of, os.walk
    monkeypatch.setattr(sources, "_start_of", lambda path: heads.append(path) or start_of(path))
    monkeypatch.setattr(os, "walk", lambda path, **more: walks.append(path) or walk(path, **more))
    assert recognise(tmp_path)[0] == "text"
    assert len(heads) == (0 if suffix == "parquet" else 1)
    assert walks == [tmp_path]


def test_telling_what_an_array_file_holds_loads_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(9, 30)))
    loads, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **more: loads.append(path) or load(path, **more))
    assert recognise(tmp_path / "a.npz")[0] == "series"
    assert len(loads) == 1


def test_of_many_graphs_one_is_read_to_tell_that_they_are_graphs(tmp_path: Path) -> None:
    path = tmp_path / "graphs.jsonl"
    path.write_text('{"edges": [[0, 1], [1, 2]]}\n' + "not read\n" * 3)
    assert registry.modalities()["graph"].recognise(path) == (0.95, "graphs as JSON")


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    for name in ("elsewhere/cats", "ds/dogs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("words")
    (tmp_path / "ds" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "ds" / "all").symlink_to(tmp_path / "ds")
    (tmp_path / "ds" / "best").symlink_to(tmp_path / "ds" / "dogs")
    found = [path.relative_to(tmp_path / "ds").as_posix() for path in list_files(tmp_path / "ds")]
    assert found == ["cats/a.txt", "dogs/a.txt"], "not by another name, nor round in circles"


def test_folders_that_labelfree_wrote_are_no_data(tmp_path: Path) -> None:
    ours = ["runs/a/run.json", "runs/a/modality.json", "runs/a/encoder/config.json", "runs/b/run.json"]
    ours += ["runs/b/encoder/model.safetensors", "model/model.json", "model/model.safetensors"]
    theirs = ["a.json", "other/run.json", "runs/c.json"]
    for name in [*ours, *theirs]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == sorted(theirs)
    assert len(list_files(tmp_path / "runs" / "b")) == 2, "one that is named is looked into"


def test_few_files_may_have_a_row_in_the_table_beside_them(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    table = sidecar(beside(tmp_path, "3.png,u", "7.png,v"), names)
    assert table is not None
    assert [value for value in table.column(1).to_pylist() if value is not None] == ["u", "v"]
    assert sidecar(beside(tmp_path, "3.png,u", "7.png,v"), names, most=True) is None
    assert sidecar(beside(tmp_path, "x.png,u", "y.png,v", "3.png,w"), names) is None
    assert sidecar(beside(tmp_path, "3.png,u", "3.png,v"), names) is None, "several rows a file are events of it"
    assert sidecar(beside(tmp_path, "3.png,u"), [f"train/{name}" for name in names]) is None


def test_files_of_equal_names_and_sizes_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    def prints(folder: str, fill: bytes) -> str:
        paths = [tmp_path / folder / f"{number}.bmp" for number in range(40)]
        paths[0].parent.mkdir(exist_ok=True)
        for path in paths:
            path.write_bytes(b"same beginning" * 300 + fill * 4000)
        return hash_files(paths, tmp_path / folder)

    assert prints("monday", b"a") != prints("tuesday", b"b")
    assert prints("monday", b"a") == prints("copy", b"a")
    assert hash_files([tmp_path / "gone.bmp"], tmp_path) == hash_files([tmp_path / "gone.bmp"], tmp_path)
