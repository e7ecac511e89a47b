"""Tables and data frames; telling what one holds costs its head, not the whole."""

import json
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
from labelfree.data.sources import read_head, read_table
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


def test_a_frame_with_a_name_twice_is_refused() -> None:
    frame = pandas.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    with pytest.raises(LabelfreeError, match="several columns named 'a'"):
        open_rows(frame)


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
