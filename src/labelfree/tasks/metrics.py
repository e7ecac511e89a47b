"""Scores of guesses: by the class that was guessed, or by how samples are ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from labelfree.errors import LabelfreeError

#: Metrics of rankings are for two classes: how well samples of the rarer one come before the others.
RANKINGS = ("average_precision", "roc_auc")
#: Metrics in which each class counts the same, however many samples it has.
EVEN = ("balanced_accuracy", "macro_f1")
METRICS = ("accuracy", *EVEN, *RANKINGS)


def class_weights(metric: str, y: np.ndarray, classes: int) -> np.ndarray:
    """(C,) weight of a sample of each class, by which samples (N,) of `y` are learnt: even where the metric is."""
    counts = np.bincount(y, minlength=classes)
    return len(y) / (classes * counts.clip(1)) if metric in EVEN else np.ones(classes)


def check_metric(metric: str, classes: int, y: np.ndarray) -> None:
    """Raises LabelfreeError where a metric of rankings meets other than two classes, or one of them alone in `y`."""
    if metric in RANKINGS and classes != 2:
        raise LabelfreeError(f"'{metric}' is for two classes, and there are {classes}.", "Use balanced_accuracy.")
    if metric in RANKINGS and len(np.unique(y)) < 2:
        raise LabelfreeError(f"'{metric}' needs test samples of both classes.", "Use accuracy, or add test samples.")


def score(
    metric: str, y: np.ndarray, answers: np.ndarray, weights: np.ndarray | None = None, some: bool = False
) -> np.ndarray:
    """Scores of several sets of answers, on several weightings of the test samples.

    Args:
        metric: accuracy; balanced_accuracy (mean recall of the classes); macro_f1 (mean F1 of the classes of `y`:
            scikit-learn's also counts classes that are only guessed, with an F1 of 0);
            average_precision (the mean, over the samples looked for, of the precision down to them); roc_auc (the
            probability that a sample looked for is ranked above another).
        y: (N,) classes; for rankings, whether a sample is one that is looked for.
        answers: (S, N) guessed classes, one row a seed; for rankings, numbers that are larger the surer one is.
        weights: (N, R) how often each sample counts; once by default.
        some: whether classes that a weighting lacks do not count.

    Returns:
        (S, R) in [0, 1]; NaN where a weighting lacks a class of `y` that the metric counts (but for `some`), or all
        that a ranking looks for.
    """
    w = np.ones((len(y), 1)) if weights is None else weights
    if metric in RANKINGS:
        return np.stack([_of_ranking(metric, y.astype(bool), row, w) for row in answers])
    if metric == "accuracy":
        return (answers == y) @ w / w.sum(axis=0)
    w = np.ascontiguousarray(w)
    known, truth = np.unique(y, return_inverse=True)
    sums, found = partial(_sums, len(known), w), []
    size = sums(truth, np.full(len(y), True))
    for row in answers:
        guessed = np.searchsorted(known, row).clip(max=len(known) - 1)
        hits, bottom = sums(truth, row == y), size
        if metric == "macro_f1":
            bottom = (size + sums(guessed, known[guessed] == row)) / 2
        parts = np.where(size > 0, hits / np.maximum(bottom, 1e-12), np.nan)
        found.append(np.nanmean(parts, axis=0) if some else np.mean(parts, axis=0))
    return np.stack(found)


def _sums(count: int, w: np.ndarray, classes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(count, R) sums of the weights (N, R) of the samples `kept` (N,), by their classes (N,)."""
    from scipy import sparse

    rows = np.flatnonzero(kept)
    ones = np.ones(len(rows), dtype=w.dtype)
    return sparse.csr_array((ones, (classes[rows], rows)), shape=(count, len(w))) @ w


def _of_ranking(metric: str, positive: np.ndarray, answers: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(R,) score of answers (N,); samples with the same answer are taken together. NaN where nothing is looked for, or,
    of a ROC curve, nothing else is there.
    """
    order = np.argsort(-answers, kind="stable")
    last = np.flatnonzero(np.append(np.diff(answers[order]) != 0, True))
    sorted_w = w[order].astype(np.float64)
    seen = np.cumsum(sorted_w, axis=0)[last]
    hits = np.cumsum(sorted_w * positive[order, None], axis=0)[last]
    recall = hits / np.maximum(hits[-1], 1e-12)
    steps = np.diff(recall, axis=0, prepend=0)
    if metric == "average_precision":
        return np.where(hits[-1] > 0, (steps * hits / np.maximum(seen, 1e-12)).sum(axis=0), np.nan)
    others = seen - hits
    ahead = others / np.maximum(others[-1], 1e-12)
    area = (steps * (1 - (ahead + np.vstack([np.zeros_like(ahead[:1]), ahead[:-1]])) / 2)).sum(axis=0)
    return np.where((hits[-1] > 0) & (others[-1] > 0), area, np.nan)


def best_of(scores: Sequence[float], ties: Sequence[float]) -> tuple[int, float | None]:
    """Which of several choices scores best in validation, and its score: None where none has a score (NaN).

    The larger of `ties` settles ties, since scores of few samples are coarse.
    """
    best = max(range(len(scores)), key=lambda i: (-math.inf if math.isnan(scores[i]) else scores[i], ties[i]))
    return best, None if math.isnan(scores[best]) else scores[best]


def margin(outputs: np.ndarray, positive: int = 1) -> np.ndarray:
    """(N, 2) probabilities or logits → (N,) how much the class `positive` is preferred to the other."""
    return outputs[:, positive] - outputs[:, 1 - positive]


def judge(metric: str, y: np.ndarray, outputs: np.ndarray, positive: int = 1) -> float:
    """The score of (n, C) probabilities or logits; `positive` is the class that rankings look for."""
    if metric in RANKINGS:
        return float(score(metric, y == positive, margin(outputs, positive)[None])[0, 0])
    return float(score(metric, y, outputs.argmax(axis=1)[None])[0, 0])
