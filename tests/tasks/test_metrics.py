"""Metrics of rankings, against scikit-learn's, with ties and weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from labelfree.errors import LabelfreeError
from labelfree.evaluation.statistics import TestPart
from labelfree.tasks.metrics import EVEN, best_of, check_metric, judge, score


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30))
def test_rankings_are_scored_as_scikit_learn_scores_them(rows: list[tuple[bool, int, int]]) -> None:
    y, answers, weights = (np.array(column) for column in zip(*rows, strict=True))
    y[:2], weights[:2] = (True, False), 1  # both kinds are there
    expected = {
        "average_precision": average_precision_score(y, answers, sample_weight=weights),
        "roc_auc": roc_auc_score(y, answers, sample_weight=weights),
    }
    for metric, value in expected.items():
        found = score(metric, y, np.stack([answers, -answers]), np.stack([weights, np.ones_like(weights)], axis=1))
        assert found.shape == (2, 2)
        assert found[0, 0] == pytest.approx(value)


@pytest.mark.parametrize("metric", EVEN)
@pytest.mark.parametrize("some", [True, False])
def test_each_class_counts_the_same(metric: str, some: bool) -> None:
    rng = np.random.default_rng(0)
    y, answers = 2 * rng.integers(0, 4, 60), rng.integers(-1, 9, (3, 60))
    for weights in (rng.integers(1, 4, (60, 5)).astype(np.float32), np.ones((60, 1))):
        parts = []
        for c in np.unique(y):
            truth, guessed = y == c, answers == c
            hits, size = (guessed & truth) @ weights, truth @ weights
            parts.append(hits / (size if metric == "balanced_accuracy" else (size + guessed @ weights) / 2))
        np.testing.assert_allclose(score(metric, y, answers, weights, some), np.mean(parts, axis=0), rtol=1e-6)


@pytest.mark.parametrize("metric", EVEN)
def test_a_class_that_a_weighting_lacks_is_unknown_or_does_not_count(metric: str) -> None:
    y, answers = np.array([0, 0, 5, 5]), np.array([[0, 0, 5, 5]])
    weights = np.array([[1, 1], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(score(metric, y, answers, weights), [[1, np.nan]])
    np.testing.assert_array_equal(score(metric, y, answers, weights, some=True), [[1, 1]])


def test_outputs_are_judged_by_the_class_that_is_looked_for() -> None:
    y = np.array([0, 0, 1, 1, 1])
    outputs = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])
    assert judge("roc_auc", y, outputs) == pytest.approx(5 / 6)
    assert judge("roc_auc", y, outputs, positive=0) == pytest.approx(5 / 6)
    assert judge("average_precision", y, outputs, positive=0) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert judge("accuracy", y, outputs) == pytest.approx(3 / 5)


def test_a_test_part_looks_for_the_class_it_was_told() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.1).astype(int)
    answers = rng.normal(size=(3, 300)) + 2 * y
    found = TestPart(y).interval("average_precision", answers)
    assert found.low < average_precision_score(y, answers[0]) < found.high
    assert TestPart(y, positive=0).interval("roc_auc", -answers).mean == pytest.approx(
        TestPart(y).interval("roc_auc", answers).mean
    )


def test_the_best_choice_has_the_best_score_and_ties_are_settled() -> None:
    assert best_of([0.5, 0.7, 0.7], [9.0, 1.0, 2.0]) == (2, 0.7)
    assert best_of([np.nan, 0.1], [9.0, 1.0]) == (1, 0.1)
    assert best_of([np.nan, np.nan], [1.0, 2.0]) == (1, None)


def test_rankings_of_three_classes_are_refused() -> None:
    with pytest.raises(LabelfreeError, match="'roc_auc' is for two classes, and there are 3"):
        check_metric("roc_auc", 3, np.arange(3))


def test_rankings_of_samples_that_are_all_alike_are_unknown() -> None:
    y, answers = np.array([True, False, False]), np.array([[3.0, 2.0, 1.0]])
    weights = np.array([[1, 0, 1], [1, 1, 0], [1, 1, 0]])  # all; without what is looked for; nothing else
    np.testing.assert_array_equal(score("average_precision", y, answers, weights), [[1, np.nan, 1]])
    np.testing.assert_array_equal(score("roc_auc", y, answers, weights), [[1, np.nan, np.nan]])
    with pytest.raises(LabelfreeError, match="needs test samples of both classes"):
        check_metric("roc_auc", 2, np.zeros(5))


def test_resamplings_without_what_is_looked_for_do_not_widen_an_interval() -> None:
    y = (np.arange(1000) < 3).astype(int)
    perfect, worse = np.tile(y, (3, 1)) + np.zeros((3, 1000)), np.tile(np.arange(1000) < 6, (3, 1)) * 1.0
    for metric in ("average_precision", "roc_auc"):
        found = TestPart(y).interval(metric, perfect)
        assert (found.low, found.high) == (pytest.approx(3 / (3 + 1.96**2)), 1), "three are all right"
        gain = TestPart(y).interval(metric, perfect, worse)
        assert gain.low < gain.mean < gain.high
