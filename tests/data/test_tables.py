"""Tables as sources: every form gives the same rows; what is no table is refused in one sentence."""

from __future__ import annotations

import pickle
import sqlite3
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

from labelfree.data import tables
from labelfree.data.tables import open_rows
from labelfree.errors import LabelfreeError
from labelfree.modalities.table import Table, TableSettings

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"], "c": [0.5, None, 2.5]})


def database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE things (a INTEGER, b TEXT, c REAL)")
        connection.executemany(
            "INSERT INTO things VALUES (?, ?, ?)", [tuple(row.values()) for row in TABLE.to_pylist()]
        )
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    parquet.write_table(TABLE.slice(0, 2), path / "1.parquet")
    parquet.write_table(TABLE.slice(2), path / "2.parquet")
    return path


def written(write: Callable[[pa.Table, Path], Any], name: str) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        write(TABLE, tmp / name)
        return tmp / name

    return make


FORMS: dict[str, Callable[[Path], Any]] = {
    "csv": written(csv.write_csv, "t.csv"),
    "parquet": written(parquet.write_table, "t.parquet"),
    "arrow": written(feather.write_feather, "t.arrow"),
    "json lines": written(lambda t, p: pd.DataFrame(t.to_pylist()).to_json(p, orient="records", lines=True), "t.jsonl"),
    "folder": lambda tmp: folder(tmp / "parts"),
    "database": lambda tmp: database(tmp / "t.db"),
    "address": lambda tmp: f"sqlite:///{database(tmp / 't.sqlite3')}",
    "frame": lambda tmp: TABLE.to_pandas(),
    "Arrow": lambda tmp: TABLE,
    "mapping": lambda tmp: TABLE.to_pydict(),
    "records": lambda tmp: TABLE.to_pylist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_rows(form: str, tmp_path: Path) -> None:
    rows = open_rows(FORMS[form](tmp_path))
    assert (rows.names, rows.count) == (("a", "b", "c"), 3)
    found = {name: column.to_pylist() for name, column in rows.columns(["c", "a", "b"])}
    assert found["a"] == [1, 2, 3]
    assert [value or None for value in found["b"]] == ["x", None, "z"]  # CSV cannot tell an empty word from none
    assert found["c"] == [0.5, None, 2.5]


def test_the_same_content_has_the_same_fingerprint() -> None:
    changed = TABLE.set_column(0, "a", pa.array([1, 2, 4]))
    assert open_rows(TABLE).fingerprint == open_rows(TABLE.slice(0)).fingerprint != open_rows(changed).fingerprint


def test_a_database_answers_a_query_and_is_not_written_to(tmp_path: Path) -> None:
    path = database(tmp_path / "t.db")
    before = path.read_bytes()
    rows = open_rows(f"sqlite:///{path}", "SELECT a, a * 2 AS d FROM things WHERE a > 1")
    assert rows.read(["d"]).to_pydict() == {"d": [4, 6]}
    with pytest.raises(LabelfreeError, match=r"did not answer: attempt to write a readonly database"):
        open_rows(path, "DELETE FROM things")
    assert path.read_bytes() == before


def test_other_databases_are_read_through_sqlalchemy(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    rows = open_rows(f"sqlite+pysqlite:///{database(tmp_path / 't.db')}")
    assert rows.read(["a", "b"]).to_pydict() == {"a": [1, 2, 3], "b": ["x", None, "z"]}
    with pytest.raises(LabelfreeError, match="'nosuch://me@host/db' did not answer"):
        open_rows("nosuch://me:secret@host/db?password=secret", "SELECT 1")


def test_a_table_is_asked_for_as_its_database_spells_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.dialects import mysql

    create, asked, closed = sqlalchemy.create_engine, [], []

    def spelling_like_mysql(*args: Any, **named: Any) -> Any:
        engine = create(*args, **named)
        engine.dialect.identifier_preparer = mysql.dialect().identifier_preparer
        sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
        sqlalchemy.event.listen(engine, "close", lambda *told: closed.append(True))
        return engine

    monkeypatch.setattr(sqlalchemy, "create_engine", spelling_like_mysql)
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute('CREATE TABLE "order" AS SELECT 1 AS a')
    assert open_rows(f"sqlite+pysqlite:///{path}").read(["a"]).to_pydict() == {"a": [1]}
    assert asked[-1] == "SELECT * FROM `order`"
    assert closed, "no connection is kept"


def test_without_sqlalchemy_the_error_names_the_command_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(LabelfreeError, match=r"pip install sqlalchemy\.") as error:
        open_rows("postgresql://me:secret@host/shop")
    assert "secret" not in str(error.value)
    assert "postgresql://me@host/shop" in str(error.value)


def test_a_database_of_several_tables_wants_a_query(tmp_path: Path) -> None:
    path = database(tmp_path / "t.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE others (a)")
    with pytest.raises(LabelfreeError, match=r"holds 2 tables \(others, things\)\. .*query="):
        open_rows(path)


def test_a_column_whose_type_shows_late_is_read(tmp_path: Path) -> None:
    lines = ["a,b", *("1,2" for _ in range(300_000)), "1.5,word"]
    (tmp_path / "late.csv").write_text("\n".join(lines))
    found = open_rows(tmp_path / "late.csv").read(["a", "b"])
    assert found.column("a")[-1].as_py() == 1.5
    assert found.column("b")[-1].as_py() == "word"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (pa.table({"a": pa.array([], pa.int64())}), "1 columns and no row"),
        (pa.table([[1], [2]], names=["a", "a"]), "several columns named 'a'"),
        ({"a": [1, 2], "b": [1]}, "is no table"),
        (np.zeros((2, 3, 4)), "A ndarray is no table"),
        (7, "A int is no table"),
        ("sqlite:////nowhere/at/all.db", "There is nothing at"),
    ],
)
def test_what_is_no_table_is_refused(source: Any, words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        open_rows(source)


def test_tables_of_a_folder_must_have_the_same_columns(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "1.parquet")
    parquet.write_table(TABLE.rename_columns(["a", "b", "d"]), tmp_path / "2.parquet")
    with pytest.raises(LabelfreeError, match="different columns: 'c' is not in all"):
        open_rows(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelfreeError, match="There is no table in"):
        open_rows(tmp_path / "empty")


def test_values_of_several_types_become_words() -> None:
    frame = pd.DataFrame({"a": [1, "two", None, 4.0], "b": [1, 2, 3, 4]})
    assert open_rows(frame).read(["a"]).column("a").to_pylist() == ["1", "two", None, "4.0"]
    assert Table.recognise(frame)[0] > 0


@pytest.mark.parametrize("form", ["csv", "parquet", "json lines", "folder", "Arrow"])
def test_a_table_travels_to_another_process(form: str, tmp_path: Path) -> None:
    source = FORMS[form](tmp_path)
    dataset = Table(TableSettings(columns=("a", "c"))).open(source)
    other = pickle.loads(pickle.dumps(dataset))
    assert other.column("b").tolist() == dataset.column("b").tolist()


def test_a_file_is_parsed_once_to_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads, read = FORMS["csv"](tmp_path), [], tables.read_table
    monkeypatch.setattr(
        tables, "read_table", lambda path, *more, **named: reads.append(path) or read(path, *more, **named)
    )
    dataset = Table(TableSettings(columns=("a", "c"))).open(path)
    assert len(reads) == 1
    assert dataset.column("b")[0] == "x"
    assert len(reads) == 2, "it is not kept in memory for the labels"


def test_records_need_not_all_have_the_same_columns() -> None:
    assert open_rows([{"a": 1}, {"a": 2, "b": "x"}]).read(["b"]).to_pydict() == {"b": [None, "x"]}


def test_columns_of_rare_types_are_read_or_left_out_with_the_reason(tmp_path: Path) -> None:
    names, half = [uuid.UUID(int=number) for number in range(60)], np.arange(60, dtype=np.float16) ** 2 % 37
    frame = pd.DataFrame({"x": np.arange(60.0) ** 2 % 7, "half": half, "name": names})
    frame["age"] = pd.cut(frame["x"], 4)
    frame["large"] = [2**70 * number for number in range(60)]
    stored = pa.table({"x": frame["x"], "half": half, "name": pa.array([name.bytes for name in names], pa.uuid())})
    parquet.write_table(stored, tmp_path / "t.parquet")
    for source in (frame, stored, tmp_path / "t.parquet"):
        found = Table().open(source).describe().facts
        assert found["number"].startswith("x, half")
        assert found["left out"] == "name: fixed_size_binary[16] is no single value"
        assert Table.recognise(source)[0] > 0
    found = Table().open(frame).describe().facts
    assert (found["number"], found["category"]) == ("x, half, large", "age (3)")
