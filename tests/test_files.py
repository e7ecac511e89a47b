"""Files appear whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelfree.errors import LabelfreeError
from labelfree.files import json_text, replacing


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


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    value = {"loss": float("nan"), "all": [np.float32("inf"), 1.5], "deep": {"x": np.array([1.0, np.nan])}}
    assert json.loads(json_text(value)) == {"loss": None, "all": [None, 1.5], "deep": {"x": [1.0, None]}}
    assert json_text({"place": Path("a")}) == '{"place": "a"}'
    with pytest.raises(TypeError, match="not JSON"):
        json_text(object())
