"""Files appear whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from labelfree.data.sources import read_table
from labelfree.errors import LabelfreeError
from labelfree.files import (
    TABLES,
    infinite,
    json_text,
    replacing,
    standing,
    tidy,
    without_secrets,
    write_json,
    write_table,
)


def test_a_file_or_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        with replacing(tmp_path / "new" / "file") as beside:
            beside.write_text("whole")
        with replacing(tmp_path / "new" / "folder") as beside:
            beside.mkdir()
            (beside / "inside").write_text("whole")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inside", "new"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_where_writing_fails_what_was_there_stays(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "folder") as beside:
            beside.mkdir()
            (beside / "half").write_text("ha")
            raise error

    with pytest.raises((LabelfreeError, RuntimeError), match=r"No space left|a bug"):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]


def test_two_processes_may_write_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replacing(tmp_path / "file") as first:
        first.write_text("first")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda: -1)
            with replacing(tmp_path / "file") as second:
                second.write_text("second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_the_last_move_fails_the_old_folder_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("old")
    move = os.replace

    def refused(source: Path, target: Path) -> None:
        if source.name.endswith(".part"):
            raise PermissionError(13, "Permission denied", str(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with (
        pytest.raises(LabelfreeError, match="could not be written: Permission denied"),
        replacing(tmp_path / "folder") as beside,
    ):
        beside.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inside"]


@pytest.mark.parametrize(
    ("number", "place", "kind"),
    [
        (errno.ENOENT, "elsewhere", FileNotFoundError),
        (errno.EACCES, "elsewhere", PermissionError),
        (errno.ENOENT, None, FileNotFoundError),
        (errno.EACCES, "inside", LabelfreeError),
        (errno.ENOSPC, None, LabelfreeError),
    ],
)
def test_only_what_keeps_a_writer_from_writing_is_called_so(
    number: int, place: str | None, kind: type[Exception], tmp_path: Path
) -> None:
    def fail(beside: Path) -> None:
        named = {"inside": beside / "inside", "elsewhere": tmp_path / "source.png"}
        raise OSError(number, os.strerror(number), None if place is None else str(named[place]))

    with pytest.raises(kind), replacing(tmp_path / "new") as beside:
        fail(beside)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", TABLES)
def test_tables_are_read_back_as_they_were_written(suffix: str, tmp_path: Path) -> None:
    columns = {"name": ["a", "b, c"], "score": np.array([0.5, 2.0])}
    path = write_table(columns, tmp_path / f"t{suffix}")
    assert read_table(path).to_pydict() == {"name": ["a", "b, c"], "score": [0.5, 2.0]}
    with pytest.raises(LabelfreeError, match="exists already"):
        write_table({"name": ["new"]}, path)
    write_table({"name": ["new"]}, path, force=True)
    assert read_table(path).to_pydict() == {"name": ["new"]}


def test_json_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    write_json(tmp_path / "run.json", {"state": "running"})
    assert forced == [(tmp_path / "run.json").stat().st_size]


def test_what_killed_writers_left_is_cleared_up(tmp_path: Path) -> None:
    """Between two renames the old folder lies aside and the new one is not there yet."""
    for name in ("encoder.7.part.old/old", "encoder.7.part/new", "other/x", "other.8.part.old/y"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for name in ("run.json", "run.json.7.part", "run.json.7.new", "run.json.7.new.7.part", "mine.part"):
        (tmp_path / name).touch()
    assert standing(tmp_path / "encoder") == tmp_path / "encoder.7.part.old"
    assert standing(tmp_path / "other") == tmp_path / "other"
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "mine.part", "other", "run.json"]
    assert [path.name for path in (tmp_path / "encoder").iterdir()] == ["old"]
    assert standing(tmp_path / "encoder") == tmp_path / "encoder"


def test_what_json_could_not_give_back_is_found() -> None:
    assert infinite({"a": [1.0, None, "inf"], "b": {"c": 2}}) is None
    assert infinite({"a": 1.0, "b": {"c": [0.5, float("inf")]}}) == "b.c.1"


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    value = {"loss": float("nan"), "all": [np.float32("inf"), 1.5], "deep": {"x": np.array([1.0, np.nan])}}
    assert json.loads(json_text(value)) == {"loss": None, "all": [None, 1.5], "deep": {"x": [1.0, None]}}
    assert json_text({"place": Path("a")}) == '{"place": "a"}'
    with pytest.raises(TypeError, match="not JSON"):
        json_text(object())


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:hunter2@host/shop", "postgresql://me@host/shop"),
        ("postgresql://me:hun?te@r/2@host/shop", "postgresql://me@host/shop"),
        ("postgresql:///shop?user=me&password=hunter2", "postgresql:///shop?user=me"),
        ("mysql://host/shop?passwd=hunter2&user=a@b", "mysql://host/shop?user=a@b"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dhunter2", "mssql+pyodbc:///"),
        ("snowflake://me@host/shop?access_token=hunter2&role=r", "snowflake://me@host/shop?role=r"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("me:hunter2@shop.csv", "me:hunter2@shop.csv"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
