"""Probes of frozen features: weighted nearest neighbours, logistic regression with its penalty searched, and, as a
baseline, boosted trees.

Whatever is chosen (k, the penalty, the trees) is chosen on the training part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelfree.tasks.labels import folds
from labelfree.tasks.logistic import Scaler, fit_logistic, span
from labelfree.tasks.metrics import best_of, class_weights, judge, margin

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURE = 0.07
#: Similarities of samples to neighbours that are held at a time.
SIMILARITIES = 1 << 26
PENALTIES = np.logspace(-6, -1, 6)
#: A search for the penalty sees at most so many labels, and cross-validates below so many labels times classes.
SEARCH, FOLDED = 4000, 10_000
#: Trees that are tried: learning rate, leaves of a tree, trees.
TREES = ((0.1, 31, 100), (0.1, 4, 150), (0.03, 15, 300))
#: Fewer labels than features are rotated into their span: up to SPAN of them, or up to WIDE_SPAN where features are
#: WIDE times as many (words and pairs of them).
SPAN, WIDE_SPAN, WIDE = 1500, 4000, 20


@dataclass(frozen=True)
class Labelled:
    """What a probe learns from.

    Attributes:
        x: (n, D) features, dense or a scipy sparse matrix.
        y: (n,) int64 classes.
        classes: how many classes there are.
        groups: (n,) groups that validation keeps whole, or None.
        metric: by which things are chosen; where it is one of `EVEN`, classes count alike.
        positive: the class that metrics of rankings look for.
        chronological: whether samples come in the order in which they happened: the last of each class are held out.
    """

    x: Any
    y: np.ndarray
    classes: int
    groups: np.ndarray | None = None
    metric: str = "accuracy"
    positive: int = 1
    chronological: bool = False

    @property
    def late(self) -> bool:
        """Whether what is held out must have come last: groups, where there are any, lie all over the time."""
        return self.chronological and self.groups is None

    def class_weights(self) -> np.ndarray:
        """(C,) weight of a sample of each class."""
        return class_weights(self.metric, self.y, self.classes)

    def score(self, y: np.ndarray, outputs: np.ndarray) -> float:
        """The metric by which things are chosen, of (n, C) probabilities or logits."""
        return judge(self.metric, y, outputs, self.positive)


@dataclass(frozen=True)
class Probed:
    """A probe's guesses (N,) on the test part, its score in validation (None without one) and what was chosen.

    Attributes:
        margin: (N,) how much the second class is preferred to the first, where there are two.
    """

    guesses: np.ndarray
    validation: float | None
    chosen: float
    margin: np.ndarray | None = None

    @classmethod
    def of(cls, outputs: np.ndarray, validation: float | None, chosen: float) -> Probed:
        """From (N, C) probabilities or logits."""
        return cls(outputs.argmax(axis=1), validation, chosen, margin(outputs) if outputs.shape[1] == 2 else None)


def knn_probe(part: Labelled, test: np.ndarray, rng: np.random.Generator) -> Probed:
    """k nearest neighbours by cosine, each voting exp(similarity / 0.07) (Wu et al. 2018, §3.4); k by leave-one-out.

    What is left out with a sample is its group; where samples come as they happened, also all that came later.
    """
    x, y = _unit(part.x), torch.as_tensor(part.y)
    weights = torch.as_tensor(part.class_weights(), dtype=torch.float32)[y]
    choices = [k for k in NEIGHBOURS if k < len(part.y)] or [1]
    found, validation = choices[0], None
    asked = _with_neighbours(part, np.sort(rng.permutation(len(part.y))[:1000]))
    if len(asked):
        queries = x[torch.from_numpy(asked)]
        votes = _votes(queries, x, y, weights, choices, part.classes, lambda rows: _hidden(part, asked[rows]))
        scores = [part.score(part.y[asked], vote.numpy()) for vote in votes]
        best, validation = best_of(scores, choices)
        found = choices[best]
    (probabilities,) = _votes(_unit(test), x, y, weights, [found], part.classes)
    return Probed.of(probabilities.numpy(), validation, float(found))


def _with_neighbours(part: Labelled, asked: np.ndarray) -> np.ndarray:
    """Those of the samples `asked` that have a neighbour at all."""
    if part.late:
        return asked[asked > 0]
    own = np.arange(len(part.y)) if part.groups is None else part.groups
    return asked if (own != own[0]).any() else asked[:0]


def _hidden(part: Labelled, asked: np.ndarray) -> Tensor:
    """(A, n) bool: who is no neighbour of the samples `asked`."""
    places = np.arange(len(part.y))
    own = places if part.groups is None else part.groups
    hidden = own[asked][:, None] == own[None, :]
    if part.late:
        hidden |= asked[:, None] < places[None, :]
    return torch.from_numpy(hidden)


def _unit(x: np.ndarray) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(x, dtype=np.float32)), dim=1)


def _votes(
    queries: Tensor,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    choices: list[int],
    classes: int,
    hidden: Callable[[slice], Tensor] | None = None,
) -> list[Tensor]:
    """(Q, classes) shares of the votes for each k of `choices`; `hidden` (of B queries, (B, n)) may not vote."""
    votes = [torch.zeros(len(queries), classes) for _ in choices]
    size = max(1, SIMILARITIES // len(x))
    for rows in (slice(start, start + size) for start in range(0, len(queries), size)):
        similarity = queries[rows] @ x.T
        if hidden is not None:
            similarity.masked_fill_(hidden(rows), -torch.inf)
        near, who = similarity.topk(max(choices), dim=1)
        power = ((near - near[:, :1]) / TEMPERATURE).exp() * weights[who]
        for k, vote in zip(choices, votes, strict=True):
            vote[rows].scatter_add_(1, y[who[:, :k]], power[:, :k])
    return [vote / vote.sum(dim=1, keepdim=True) for vote in votes]


def linear_probe(part: Labelled, test: Any, scaler: Scaler, rng: np.random.Generator) -> Probed:
    """Multinomial logistic regression; its penalty is searched by cross-validation, or on a fifth of many labels.

    Args:
        part: features as they come.
        test: (N, D) features of the test part.
        scaler: fitted on training features, those without a label in use too.
        rng: of the validation split.
    """
    weights = part.class_weights()[part.y][:, None]
    x, others = scaler(part.x), [scaler(test)]
    if _rotates(len(part.y), x.shape[1]):
        x, others = span(x, others)
    penalty, validation = _search(replace(part, x=x), rng)
    found = fit_logistic(x, part.y, part.classes, np.array([penalty]), weights)[:, 0]
    return Probed.of(_logits(others[0], found), validation, penalty)


def _rotates(count: int, width: int) -> bool:
    return count < min(width, SPAN) or (count < WIDE_SPAN and count * WIDE < width)


def _logits(x: Any, w: np.ndarray) -> np.ndarray:
    return np.asarray(x @ w[:-1] + w[-1])


def boosting_probe(part: Labelled, test: Any, rng: np.random.Generator) -> Probed:
    """Gradient boosting of histogram trees (Ke et al. 2017, LightGBM, as scikit-learn has it): the classical model for
    tables. The trees are chosen from `TREES` on a fifth of the labels.
    """
    x, other = (each if isinstance(each, np.ndarray) else each.toarray() for each in (part.x, test))
    held = folds(part.y, 5, rng, part.groups, part.chronological) == 0
    chosen, validation = 0, None
    if held.any() and len(np.unique(part.y[~held])) > 1:
        fit = replace(part, x=x[~held], y=part.y[~held])
        probabilities = [_boosted(fit, x[held], *trees) for trees in TREES]
        y = part.y[held]
        scores = [part.score(y, each) for each in probabilities]
        chosen, validation = best_of(scores, [_likelihood(np.log(each), y) for each in probabilities])
    return Probed.of(_boosted(replace(part, x=x), other, *TREES[chosen]), validation, float(chosen))


def _boosted(part: Labelled, test: np.ndarray, rate: float, leaves: int, trees: int) -> np.ndarray:
    """(N, C) probabilities, none of them 0."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=rate,
        max_leaf_nodes=leaves,
        max_iter=trees,
        min_samples_leaf=max(1, min(20, len(part.y) // 20)),
        l2_regularization=1.0,  # without it a leaf of a class that is very rare grows without bound
        early_stopping=False,
        random_state=0,
    )
    model.fit(part.x, part.y, sample_weight=part.class_weights()[part.y])
    probabilities = np.full((len(test), part.classes), 1e-9)
    # of one class alone there are two columns
    probabilities[:, model.classes_] += model.predict_proba(test)[:, : len(model.classes_)]
    return probabilities


def _search(part: Labelled, rng: np.random.Generator) -> tuple[float, float | None]:
    """The best penalty, and its score in validation; the middle of the grid where nothing can be held out.

    Where samples come as they happened, each of the last four fifths is held out from what came before it, and the
    strongest penalty is taken that is within a standard error of the best (Breiman et al. 1984, §3.4.3): neighbours in
    time are alike, so that a fifth is few samples, which all penalties may get right.
    """
    fold = folds(part.y, 5, rng, part.groups, part.chronological)
    learnt = [fold > f if part.late else fold != f for f in range(5)]
    tried = [f for f in range(5) if (fold == f).any() and len(np.unique(part.y[learnt[f]])) > 1]
    if not tried:
        return float(PENALTIES[len(PENALTIES) // 2]), None
    logits: Iterable[np.ndarray]
    if len(part.y) * part.classes < FOLDED:
        logits = _cross_validate(part, fold, {f: learnt[f] for f in tried})
    else:
        tried = tried[:1]
        logits = _hold_out(part, rng.permutation(np.flatnonzero(learnt[tried[0]])), fold == tried[0])
    held = np.isin(fold, tried)
    y, own = part.y[held], [fold[held] == f for f in tried if part.late]
    judged = [
        (part.score(y, each), _likelihood(each, y), [part.score(y[rows], each[rows]) for rows in own])
        for each in logits
    ]
    scores, likelihoods, apart = zip(*judged, strict=True)
    best, validation = best_of(scores, likelihoods)
    if part.late and len(tried) > 1:
        least = scores[best] - np.std(apart[best], ddof=1) / len(tried) ** 0.5
        best = max(i for i in range(len(PENALTIES)) if i == best or scores[i] >= least)
    return float(PENALTIES[best]), validation


def _cross_validate(part: Labelled, fold: np.ndarray, learnt: Mapping[int, np.ndarray]) -> np.ndarray:
    """(penalties, held-out samples, C) logits of each sample of a fold, by what was fitted to those `learnt` from."""
    weights = part.class_weights()[part.y]
    columns = np.stack([weights * kept for kept in learnt.values() for _ in PENALTIES], axis=1)
    penalties = np.concatenate([_for(PENALTIES, kept.mean()) for kept in learnt.values()])
    found = fit_logistic(part.x, part.y, part.classes, penalties, columns)
    logits = np.zeros((len(PENALTIES), len(part.y), part.classes), dtype=np.float32)
    for place, f in enumerate(learnt):
        for i in range(len(PENALTIES)):
            logits[i, fold == f] = _logits(part.x[fold == f], found[:, place * len(PENALTIES) + i])
    return logits[:, np.isin(fold, list(learnt))]


def _hold_out(part: Labelled, order: np.ndarray, held: np.ndarray) -> Iterator[np.ndarray]:
    """For each penalty (held-out samples, C) logits by what was fitted to the first of `order`: as many as is quick."""
    wide = part.x.shape[1] > SEARCH
    rows = order[: SPAN if wide else SEARCH]
    x, out = part.x[rows], part.x[held]
    if wide and len(rows) < x.shape[1]:
        x, (out,) = span(x, [out])
    weights = np.repeat(part.class_weights()[part.y[rows]][:, None], len(PENALTIES), axis=1)
    penalties = _for(PENALTIES, len(rows) / len(part.y))
    found = fit_logistic(x, part.y[rows], part.classes, penalties, weights)
    return (_logits(out, found[:, i]) for i in range(len(PENALTIES)))


def _for(penalties: np.ndarray, share: float) -> np.ndarray:
    """The penalties that do to a share of the samples what these do to all: the loss is a mean, so they are larger."""
    return penalties / share


def _likelihood(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean logarithm of the probability of the truth."""
    return -float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y)))
