"""Telling what a table holds costs its head, not the whole."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from labelfree.data import sources
from labelfree.data.sources import read_head, read_table
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
