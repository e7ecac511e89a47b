"""Probes find what is in features, and choose what they choose without the test part."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score

from labelfree.evaluation import probes
from labelfree.evaluation.probes import TREES, Labelled, _boosted, boosting_probe, knn_probe, linear_probe
from labelfree.tasks.logistic import Scaler


def blobs(n: int, spread: float, seed: int = 0, d: int = 10, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(99).normal(size=(c, d))
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    return (centres[y] + spread * rng.normal(size=(n, d))).astype(np.float32), y


def linear(x: np.ndarray, y: np.ndarray, test: np.ndarray, **options: object) -> np.ndarray:
    part = Labelled(x, y, 4, **options)  # type: ignore[arg-type]
    return linear_probe(part, test, Scaler.fit(x), np.random.default_rng(0)).guesses


@pytest.mark.parametrize("count", [8, 60, 1200])
def test_probes_separate_what_is_separate(count: int) -> None:
    x, y = blobs(count, 0.3)
    test, truth = blobs(200, 0.3, seed=1)
    assert (linear(x, y, test) == truth).mean() > 0.9
    assert (knn_probe(Labelled(x, y, 4), test, np.random.default_rng(0)).guesses == truth).mean() > 0.9


def test_noise_is_found_to_be_noise() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 50)).astype(np.float32), rng.integers(0, 4, 300)
    test, truth = rng.normal(size=(300, 50)).astype(np.float32), rng.integers(0, 4, 300)
    probed = linear_probe(Labelled(x, y, 4), test, Scaler.fit(x), np.random.default_rng(0))
    assert probed.validation is not None
    assert probed.validation < 0.4
    assert (probed.guesses == truth).mean() < 0.4
    assert (knn_probe(Labelled(x, y, 4), test, np.random.default_rng(0)).guesses == truth).mean() < 0.4


def test_the_penalty_grows_with_the_noise() -> None:
    def penalty(spread: float) -> float:
        x, y = blobs(200, spread, d=100)
        return linear_probe(Labelled(x, y, 4), x[:1], Scaler.fit(x), np.random.default_rng(0)).chosen

    assert penalty(0.5) <= penalty(20.0)
    assert penalty(20.0) >= 1e-3


def test_scale_and_place_of_features_do_not_matter() -> None:
    x, y = blobs(100, 1.0)
    test, _ = blobs(100, 1.0, seed=1)
    np.testing.assert_array_equal(linear(x, y, test), linear(1000 * x + 50, y, 1000 * test + 50))


def test_sparse_features_are_served() -> None:
    x, y = blobs(100, 0.5)
    test, truth = blobs(100, 0.5, seed=1)
    thin = sparse.csr_matrix(np.maximum(x, 0))
    part = Labelled(thin, y, 4)
    probed = linear_probe(part, sparse.csr_matrix(np.maximum(test, 0)), Scaler.fit(thin), np.random.default_rng(0))
    assert (probed.guesses == truth).mean() > 0.8


def test_wide_features_are_probed_the_same_in_their_span(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(300, 6.0, d=400)
    test, _ = blobs(200, 6.0, seed=1, d=400)
    monkeypatch.setattr(probes, "SPAN", 0)
    guesses = []
    for most in (0, 4000):
        monkeypatch.setattr(probes, "WIDE_SPAN", most)
        monkeypatch.setattr(probes, "WIDE", 1)
        guesses.append(linear(x, y, test))
    assert (guesses[0] == guesses[1]).mean() > 0.98


def test_the_test_part_chooses_nothing() -> None:
    x, y = blobs(80, 2.0)
    first, second = blobs(50, 2.0, seed=1)[0], 100 * blobs(50, 9.0, seed=2)[0]
    for probe in (
        lambda test: linear_probe(Labelled(x, y, 4), test, Scaler.fit(x), np.random.default_rng(0)),
        lambda test: knn_probe(Labelled(x, y, 4), test, np.random.default_rng(0)),
    ):
        a, b = probe(first), probe(second)
        assert (a.chosen, a.validation) == (b.chosen, b.validation)


def test_validation_of_grouped_data_is_not_fooled_by_what_groups_share() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 10)
    y = rng.integers(0, 2, 24)[groups]  # one class a group, which the features do not tell but by the group
    x = (rng.normal(size=(24, 20))[groups] + 0.01 * rng.normal(size=(240, 20))).astype(np.float32)
    for options, fooled in (({}, True), ({"groups": groups}, False)):
        part = Labelled(x, y, 2, **options)  # type: ignore[arg-type]
        for probed in (
            linear_probe(part, x, Scaler.fit(x), np.random.default_rng(0)),
            knn_probe(part, x, np.random.default_rng(0)),
        ):
            assert probed.validation is not None
            assert (probed.validation > 0.95) == fooled


def test_the_neighbours_of_a_moment_lie_before_it() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, 100), 2)  # each sample has one twin, which half of them are still to meet
    x = np.repeat(rng.normal(size=(100, 20)), 2, axis=0).astype(np.float32)
    known, late = (
        knn_probe(Labelled(x, y, 2, chronological=chronological), x, np.random.default_rng(0)).validation
        for chronological in (False, True)
    )
    assert known == 1.0
    assert late is not None
    assert late < 0.85


def test_a_penalty_is_chosen_on_what_came_after(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(100, 1.0)
    seen: list[Mapping[int, np.ndarray]] = []

    def spy(part: Labelled, fold: np.ndarray, learnt: Mapping[int, np.ndarray]) -> np.ndarray:
        seen.append(learnt)
        for f, before in learnt.items() if part.chronological else ():
            for c in range(part.classes):
                mine = np.flatnonzero(part.y == c)
                assert before[mine].sum() == np.flatnonzero(fold[mine] == f).min()
        return real(part, fold, learnt)

    real = probes._cross_validate
    monkeypatch.setattr(probes, "_cross_validate", spy)
    for chronological in (False, True):
        linear(x, y, x, chronological=chronological)
    assert [list(learnt) for learnt in seen] == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]


def test_moments_that_every_penalty_gets_right_take_the_strongest() -> None:
    x, y = blobs(100, 0.1)
    part = Labelled(x, y, 4, chronological=True)
    assert linear_probe(part, x, Scaler.fit(x), np.random.default_rng(0)).chosen == probes.PENALTIES[-1]


def test_one_group_alone_can_be_probed_but_not_validated() -> None:
    x, y = blobs(40, 0.3)
    part = Labelled(x, y, 4, groups=np.zeros(40))
    for probed in (
        linear_probe(part, x, Scaler.fit(x), np.random.default_rng(0)),
        knn_probe(part, x, np.random.default_rng(0)),
    ):
        assert probed.validation is None
        assert (probed.guesses == y).mean() > 0.9


def test_balance_lets_rare_classes_speak() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0] * 380 + [1] * 20)
    x = (y[:, None] * 1.0 + rng.normal(size=(400, 5))).astype(np.float32)
    guess = {
        metric: linear_probe(Labelled(x, y, 2, metric=metric), x, Scaler.fit(x), np.random.default_rng(0)).guesses
        for metric in ("accuracy", "balanced_accuracy")
    }
    found = {metric: (guesses[y == 1] == 1).mean() for metric, guesses in guess.items()}
    assert found["balanced_accuracy"] > found["accuracy"] + 0.2


def test_boosted_trees_find_what_no_line_separates() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 3)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    part = Labelled(x[:300], y[:300], 2, metric="roc_auc")
    trees = boosting_probe(part, x[300:], np.random.default_rng(0))
    line = linear_probe(part, x[300:], Scaler.fit(part.x), np.random.default_rng(0))
    assert (trees.guesses == y[300:]).mean() > 0.85 > (line.guesses == y[300:]).mean()
    assert trees.validation is not None
    assert trees.margin is not None
    assert ((trees.margin > 0) == (trees.guesses == 1)).all()


def test_neighbours_that_may_not_vote_are_found_for_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(200, 1.0)
    part, counts, hidden = Labelled(x, y, 4, groups=np.arange(200) // 2), [], probes._hidden
    monkeypatch.setattr(probes, "_hidden", lambda part, asked: counts.append(len(asked)) or hidden(part, asked))
    validation = []
    for most in (1 << 26, 16 * 200):
        monkeypatch.setattr(probes, "SIMILARITIES", most)
        validation.append(knn_probe(part, x, np.random.default_rng(0)).validation)
    assert validation[0] == validation[1]
    assert counts == [200, *[16] * 12, 8]


def test_of_many_labels_a_fifth_is_held_out_once_for_all_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(300, 1.0)
    folded = linear_probe(Labelled(x, y, 4), x, Scaler.fit(x), np.random.default_rng(0))
    monkeypatch.setattr(probes, "FOLDED", 0)
    for chronological in (False, True):
        part = Labelled(x, y, 4, chronological=chronological)
        held = linear_probe(part, x, Scaler.fit(x), np.random.default_rng(0))
        assert held.validation == pytest.approx(folded.validation, abs=0.1)


def test_boosted_trees_of_one_class_guess_it() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    for own in (0, 1):
        probed = boosting_probe(Labelled(x, np.full(30, own), 2), x, np.random.default_rng(0))
        assert set(probed.guesses) == {own}


def test_boosted_trees_learn_from_two_labels_of_classes_that_are_not_all_there() -> None:
    x = np.array([[0.0], [1.0]], dtype=np.float32)
    probed = boosting_probe(Labelled(x, np.array([0, 2]), 3), x, np.random.default_rng(0))
    assert probed.guesses.shape == (2,)
    assert probed.validation is None


@pytest.mark.parametrize("trees", TREES)
def test_boosted_trees_find_a_class_that_is_very_rare(trees: tuple[float, int, int]) -> None:
    rng = np.random.default_rng(0)

    def rows(count: int, rare: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = rng.normal(size=(count, 6)), np.zeros(count, dtype=np.int64)
        x[:rare, :2] += 4
        y[:rare] = 1
        return x, y

    part, (x, y) = Labelled(*rows(3000, 8), classes=2), rows(2000, 40)
    assert average_precision_score(y, _boosted(part, x, *trees)[:, 1]) > 0.9
