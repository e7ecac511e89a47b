"""Scores, intervals and label saving, by their properties and against scikit-learn's."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from labelfree.evaluation.statistics import TestPart, labels_needed, labels_saved, student
from labelfree.tasks.metrics import score


def guesses(y: np.ndarray, right: float, rng: np.random.Generator, seeds: int = 3) -> np.ndarray:
    """(S, N) guesses that are right with a given probability."""
    wrong = (y + 1 + rng.integers(0, 2, (seeds, len(y)))) % 3
    return np.where(rng.random((seeds, len(y))) < right, y, wrong)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    y, guess = np.array(pairs).T
    there = np.unique(y)
    expected = {
        "accuracy": accuracy_score(y, guess),
        "balanced_accuracy": recall_score(y, guess, labels=there, average="macro", zero_division=0),
        "macro_f1": f1_score(y, guess, labels=there, average="macro", zero_division=0),
    }
    for metric, value in expected.items():
        assert score(metric, y, guess[None])[0, 0] == pytest.approx(value)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_a_weight_of_two_is_the_sample_twice(metric: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 50)
    guess = guesses(y, 0.6, rng)
    weights = rng.integers(0, 3, (50, 1))
    doubled = np.repeat(np.arange(50), weights[:, 0])
    np.testing.assert_allclose(score(metric, y, guess, weights), score(metric, y[doubled], guess[:, doubled]))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        y = rng.integers(0, 3, 150)
        found = TestPart(y, seed=trial).interval("accuracy", guesses(y, 0.7, rng))
        held += found.low <= 0.7 <= found.high
    assert held >= 188


def test_intervals_are_wider_with_fewer_test_samples_and_with_groups() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    guess = np.repeat(guesses(y, 0.7, rng, seeds=1), 3, axis=0)
    wide, narrow = TestPart(y[:60]).interval("accuracy", guess[:, :60]), TestPart(y).interval("accuracy", guess)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    groups = np.argsort(np.argsort(guess[0] == y)) // 30  # ten groups, each all right or all wrong
    grouped = TestPart(y, groups).interval("accuracy", guess)
    assert grouped.high - grouped.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("count", [3, 6])
def test_intervals_of_few_groups_hold_the_truth_too(count: int) -> None:
    rng = np.random.default_rng(count)
    y, groups, held = np.zeros(20 * count, dtype=np.int64), np.repeat(np.arange(count), 20), 0
    for _ in range(200):
        skill = rng.uniform(0.4, 1.0, count)[groups]  # how well a group is told is a matter of the group
        guess = (rng.random((1, len(y))) > skill).astype(np.int64)
        found = TestPart(y, groups).interval("accuracy", guess)
        held += found.low <= 0.7 <= found.high
    assert held >= 180


def test_one_group_says_nothing_of_others() -> None:
    y = np.array([0, 1] * 10)
    found = TestPart(y, np.zeros(20)).interval("accuracy", y[None])
    assert (found.mean, found.low, found.high) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_two_groups_that_are_all_right_are_two_and_not_two_thousand(metric: str) -> None:
    y = np.arange(2000) % 2
    found = TestPart(y, np.repeat([0, 1], 1000)).interval(metric, y[None])
    assert (found.mean, found.low, found.high) == (1, pytest.approx(2 / (2 + 1.96**2)), 1)


@pytest.mark.parametrize(("few", "least"), [(1, 0.93), (2, 0.93), (5, 0.93), (20, 0.92)])
def test_intervals_of_even_metrics_hold_the_truth_with_few_samples_of_a_class(few: int, least: float) -> None:
    rng, held = np.random.default_rng(few), 0
    y = np.repeat([0, 1], [200, few])
    for trial in range(100):
        guess = np.where(rng.random((1, len(y))) < np.where(y == 0, 0.9, 0.7), y, 1 - y)
        found = TestPart(y, seed=trial).interval("balanced_accuracy", guess)
        assert found.low <= found.mean <= found.high
        held += found.low <= 0.8 <= found.high
    assert held >= 100 * least


def test_a_difference_that_rests_on_two_samples_of_a_class_is_not_certain() -> None:
    y = np.repeat([0, 1], [200, 2])
    worse, better = np.zeros((3, 202), dtype=int), np.tile(y, (3, 1))
    gain = TestPart(y).interval("balanced_accuracy", better, worse)
    assert (gain.mean, gain.low < 0.1) == (0.5, True)


def test_resamplings_that_lack_a_class_say_nothing() -> None:
    y, weights = np.array([0, 0, 1]), np.array([[1, 1], [1, 2], [1, 0]])
    for metric in ("balanced_accuracy", "macro_f1"):
        assert np.isnan(score(metric, y, y[None], weights)).tolist() == [[False, True]]
        assert score(metric, y, y[None], weights, some=True).tolist() == [[1, 1]]


def test_a_class_of_one_group_may_be_told_in_any_way_in_others() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 20)
    y = (groups == 0).astype(int)
    guess = np.where(rng.random((1, 400)) < 0.9, y, 1 - y)
    found = TestPart(y, groups).interval("balanced_accuracy", guess)
    assert found.high - found.mean >= 0.1 - 1e-9
    assert found.mean - found.low > 0.5
    sure = TestPart(y, groups).interval("average_precision", guess + 0.0)
    assert (sure.low, sure.high) == (0, 1)


def test_many_classes_of_two_groups_each_leave_a_bound() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    y = groups // 2
    guess = np.where(rng.random((1, 400)) < 0.8, y, (y + 1) % 20)
    found = TestPart(y, groups).interval("balanced_accuracy", guess)
    assert 0.1 < (found.high - found.low) / 2 < 0.2


def test_guesses_that_do_not_differ_between_seeds_are_given_once() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    once, others = guesses(y, 0.8, rng, seeds=1), guesses(y, 0.6, rng)
    found, same = (TestPart(y).interval("accuracy", each, others) for each in (once, np.repeat(once, 3, axis=0)))
    assert astuple(found) == pytest.approx(astuple(same))


@pytest.mark.parametrize("count", [1, 4])
def test_draws_of_a_score_lie_as_wide_as_its_interval(count: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    guess = np.concatenate([guesses(y, right, rng, seeds=1) for right in (0.5, 0.6, 0.65, 0.7)[:count]])
    for groups in (None, np.arange(300) % 3):
        part = TestPart(y, groups)
        found, drawn = part.interval("accuracy", guess), part.resampled("accuracy", guess)
        assert drawn.score == pytest.approx(found.mean)
        assert drawn.draws.mean() == pytest.approx(found.mean, abs=0.05)
        assert 1.96 * drawn.draws.std() == pytest.approx((found.high - found.low) / 2, rel=0.15)


def test_one_group_leaves_label_saving_open() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    part = TestPart(y, np.zeros(300))
    curve = {n: part.resampled("accuracy", guesses(y, right, rng)) for n, right in ((10, 0.4), (100, 0.6), (1000, 0.9))}
    needed, low, high = labels_saved(curve, part.resampled("accuracy", guesses(y, 0.75, rng)))
    assert needed is not None
    assert 100 < needed < 1000
    assert (low, high) == (10, None)


def test_a_difference_on_the_same_samples_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 200)
    worse = guesses(y, 0.6, rng)
    better = np.where((worse != y) & (rng.random(worse.shape) < 0.2), y, worse)
    part = TestPart(y)
    gain = part.interval("accuracy", better, worse)
    assert gain.low > 0
    assert part.interval("accuracy", better).low < part.interval("accuracy", worse).high
    same = part.interval("accuracy", worse, worse)
    assert (same.mean, -same.low, same.high) == (0, *[pytest.approx(1.96**2 / (200 + 1.96**2))] * 2)


def test_one_seed_leaves_the_uncertainty_of_the_test_samples() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 100)
    found = TestPart(y).interval("accuracy", guesses(y, 0.7, rng, seeds=1))
    assert 0.05 < found.high - found.mean < 0.13


def test_students_quantile() -> None:
    assert student(3) == pytest.approx(4.3027, abs=1e-3)
    assert student(10_000) == pytest.approx(1.96, abs=1e-2)


def test_labels_needed_lie_on_the_learning_curve() -> None:
    assert labels_needed([10, 100, 1000], [0.2, 0.4, 0.8], 0.4) == pytest.approx(100)
    assert labels_needed([10, 100, 1000], [0.2, 0.4, 0.8], 0.6) == pytest.approx(316.2, abs=0.1)
    assert labels_needed([10, 100, 1000], [0.2, 0.4, 0.8], 0.1) == 10
    assert labels_needed([10, 100, 1000], [0.2, 0.4, 0.8], 0.9) is None
    assert labels_needed([10, 100, 1000], [0.2, 0.5, 0.3], 0.45) < 100


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_score_never_needs_fewer_labels(curve: list[float], a: float, b: float) -> None:
    labels = [10 * 3**i for i in range(len(curve))]
    low, high = (labels_needed(labels, curve, target) for target in sorted((a, b)))
    assert high is None or (low is not None and low <= high + 1e-6)
