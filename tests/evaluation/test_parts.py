"""What is held out where there is no test source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import runs

from labelfree.evaluation.parts import _fifth, read_parts
from labelfree.tasks.labels import Part


def test_copies_weigh_as_many_as_they_are_and_leave_each_class_to_learn_from() -> None:
    """As in a table of categories, in which few rows differ."""
    sizes = [400, 200, 100, 80, 60, 50, 40, 30, 20, 10, 5, 5, 40]
    marks, kinds = np.repeat(np.arange(13), sizes), np.array([*np.arange(12) % 3, 3])
    whole = Part(None, np.arange(len(marks)), kinds[marks])  # type: ignore[arg-type]
    for seed in range(12):
        held = _fifth(whole, marks, seed)
        assert 0.1 <= held.mean() <= 0.3
        assert not set(marks[held]) & set(marks[~held])
        assert set(whole.y[~held]) == {0, 1, 2, 3}


def test_the_share_that_is_held_out_is_said_where_it_is_no_fifth(tmp_path: Path) -> None:
    x, y = runs.pictures(4, classes=2)
    np.savez(tmp_path / "copies.npz", images=x.repeat(10, axis=0), label=y.repeat(10))
    run = runs.make_run(tmp_path / "run", tmp_path / "copies.npz")
    parts = read_parts(run, tmp_path / "copies.npz", None, "label", None, 0)
    assert len(parts.test) == 10
    assert parts.warnings[0] == "There was no test source: 25% of the training source was held out."
