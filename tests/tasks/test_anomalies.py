"""Anomalies without labels: what is strange comes first, by either way, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from pyarrow import csv

from labelfree.cli import main
from labelfree.errors import LabelfreeError
from labelfree.tasks import anomalies
from labelfree.tasks import embed as features_of
from labelfree.tasks.anomalies import HOW, Anomalies, How, Ordinary
from labelfree.tasks.embed import embed

HALF = 150


def two_clouds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two elongated clouds; one dimension is constant."""
    side = np.where(np.arange(count) % 2, 4.0, -4.0)[:, None]
    return np.hstack([rng.normal(size=(count, 2)) * [3.0, 0.1] + side * [0, 1], np.full((count, 1), 7.0)])


@pytest.mark.parametrize("how", HOW)
def test_what_is_far_along_a_narrow_direction_is_strange(how: How) -> None:
    rng = np.random.default_rng(0)
    learnt = Ordinary.learn(two_clouds(rng, 2 * HALF), how)
    usual, odd = learnt.score(two_clouds(rng, 50)), learnt.score(np.array([[0.0, 24.0, 7.0]]))
    assert odd > usual.max()
    assert learnt.rank(odd) == 1.0
    assert 0.2 < learnt.rank(usual).mean() < 0.8


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("count", "width"), [(300, 256), (60, 256), (400, 8)])
def test_ordinary_samples_are_as_strange_as_the_reference(how: How, count: int, width: int) -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, width + 1) ** -0.5
    learnt = Ordinary.learn(rng.normal(size=(count, width)) * scale, how)
    share = learnt.rank(learnt.score(rng.normal(size=(500, width)) * scale))
    assert share.mean() == pytest.approx(0.5, abs=0.1)
    assert np.nanmean(learnt.rank(learnt.own)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("how", HOW)
def test_samples_of_the_reference_are_judged_by_the_others(how: How) -> None:
    x = np.random.default_rng(0).normal(size=(50, 20)) * np.linspace(3, 0.3, 20)
    own = Ordinary.learn(x, how).own
    for i in range(5):
        others = Ordinary.learn(np.delete(x, i, axis=0), how)
        assert own[i] == pytest.approx(others.score(x[i : i + 1])[0], rel=0.05)


def test_fewer_samples_than_dimensions_are_not_all_equally_strange() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, 128)) * np.linspace(3, 0.1, 128)
    x[5] *= 3
    learnt = Ordinary.learn(x)
    scores = learnt.score(x)
    assert scores.argmax() == 5
    assert np.delete(scores, 5).std() > 0.02 * scores.mean()
    assert scores[5] > 1.3 * np.delete(scores, 5).max()


def test_only_neighbours_find_what_lies_between_clouds() -> None:
    rng = np.random.default_rng(0)
    between = np.array([[0.0, 0.0, 7.0]])
    found = {how: Ordinary.learn(two_clouds(rng, 2 * HALF), how) for how in HOW}
    ranks = {how: float(learnt.rank(learnt.score(between))[0]) for how, learnt in found.items()}
    assert ranks["neighbours"] > 0.95 > 0.5 > ranks["distance"]


@pytest.mark.parametrize("how", HOW)
def test_rows_that_cannot_be_read_have_no_score_and_change_nothing(how: How) -> None:
    x = two_clouds(np.random.default_rng(0), 40)
    gap = np.full((1, 3), np.nan)
    learnt, again = Ordinary.learn(x, how), Ordinary.learn(np.vstack([x[:20], gap, x[20:]]), how)
    asked = np.vstack([x[:3], gap])
    np.testing.assert_array_equal(learnt.score(asked), again.score(asked))
    assert np.isnan(learnt.score(asked)).tolist() == [False, False, False, True]
    assert np.isnan(learnt.rank(learnt.score(asked))).tolist() == [False, False, False, True]
    found = Anomalies(["a", "b", "c", "d"], learnt.score(asked), learnt.rank(learnt.score(asked)))
    assert found.strangest(4)[-1] == 3


def test_too_little_and_unknown_ways_are_refused() -> None:
    with pytest.raises(LabelfreeError, match="The reference has 1 samples that can be read"):
        Ordinary.learn(np.zeros((1, 3)))
    with pytest.raises(LabelfreeError, match=r"not found by 'distnce'.*Did you mean 'distance'"):
        Ordinary.learn(np.zeros((9, 3)), "distnce")  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_source_and_a_slip_costs_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.make_run(tmp_path / "run", runs.save(tmp_path / "train.npz", 60, seed=1))
    whole = run.anomalies(tmp_path / "train.npz", how="neighbours")
    sizes: list[int] = []

    def watched(*arguments: Any, **options: Any) -> np.ndarray:
        sizes.append(len(options["indices"]))
        return embed(*arguments, **options)

    for module in (anomalies, features_of):
        monkeypatch.setattr(module, "embed", watched)
    monkeypatch.setattr(features_of, "CHUNK", 25)
    monkeypatch.setattr(anomalies, "LEARNT", 20)
    run.anomalies(tmp_path / "train.npz")
    assert sizes == [20, 25, 25, 10]
    monkeypatch.setattr(anomalies, "LEARNT", 60)
    np.testing.assert_allclose(run.anomalies(tmp_path / "train.npz", how="neighbours").score, whole.score, atol=1e-4)
    sizes.clear()
    with pytest.raises(LabelfreeError, match="Did you mean 'neighbours'"):
        run.anomalies(tmp_path / "train.npz", how="neighbors")
    assert not sizes


def test_a_run_finds_pictures_unlike_those_it_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = runs.save(tmp_path / "train.npz", 90, seed=1)
    run = runs.make_run(tmp_path / "run", source)
    pictures, _ = runs.pictures(30, seed=2)
    pictures[7] = 255 * (np.indices((8, 8)).sum(axis=0) % 2)  # a chessboard among stripes
    np.savez(tmp_path / "new.npz", images=pictures)
    found = run.anomalies(tmp_path / "new.npz")
    assert found.strangest(1).tolist() == [7]
    found.write(tmp_path / "a.csv")
    table = csv.read_csv(tmp_path / "a.csv")
    assert table.column_names == ["name", "score", "share"]
    np.testing.assert_allclose(table.column("score").to_numpy(), found.score, rtol=1e-5)
    alone = run.anomalies(tmp_path / "new.npz", tmp_path / "new.npz")
    assert alone.strangest(1).tolist() == [7]
    assert alone.share.mean() == pytest.approx(0.5, abs=0.05)
    assert main(["anomalies", str(tmp_path / "nothing"), "x", "--out", "y.csv"]) == 2
    assert main(["anomalies", str(tmp_path / "run"), str(tmp_path / "new.npz"), "--out", "y.txt", "--json"]) == 2
    assert "not a kind of file" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
