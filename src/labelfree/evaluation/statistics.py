"""Scores, what their uncertainty is, and how many labels a score is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelfree.tasks.metrics import EVEN, RANKINGS, score

#: Resamplings of the test part, fewer where it is so large that they would fill the memory.
RESAMPLES, WEIGHTS = 200, 20_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def around(cls, mean: float, half: float, floor: float = 0.0) -> Interval:
        return cls(mean, max(floor, mean - half), min(1.0, mean + half))


@dataclass(frozen=True)
class Resampled:
    """A mean score, and (R,) what it would be with other test samples and seeds."""

    score: float
    draws: np.ndarray


class TestPart:
    """The test samples' classes, and the resamplings of them that say how much a score owes to which ones they are.

    Args:
        y: (N,) classes.
        positive: the class that metrics of rankings look for.
        groups: (N,) groups; whole groups are resampled then, since their samples are alike.
        seed: of the resampling.
    """

    __test__ = False  # no test class, whatever pytest may think of its name

    def __init__(self, y: np.ndarray, groups: np.ndarray | None = None, seed: int = 0, positive: int = 1) -> None:
        self.y, self.positive = y, positive
        rng = np.random.default_rng(seed)
        place = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.count = count = int(place.max()) + 1
        times = max(25, min(RESAMPLES, WEIGHTS // len(y)))
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=times).T
        self.weights = drawn.astype(np.float32)[place]
        self.weights = self.weights[:, self.weights.sum(axis=0) > 0]
        self.seed = seed

    def scores(self, metric: str, guesses: np.ndarray) -> np.ndarray:
        """(S,) score of each row of guesses (S, N)."""
        return score(metric, self._truth(metric), guesses)[:, 0]

    def resampled(self, metric: str, guesses: np.ndarray) -> Resampled:
        """The mean over seeds of a score; test samples and seeds (S, N) are drawn again, for all methods alike."""
        every = score(metric, self._truth(metric), guesses, self.weights)
        seeds = np.random.default_rng((self.seed, 1)).integers(0, len(every), every.shape)
        return Resampled(float(self.scores(metric, guesses).mean()), np.take_along_axis(every, seeds, 0).mean(axis=0))

    def _truth(self, metric: str) -> np.ndarray:
        return self.y == self.positive if metric in RANKINGS else self.y

    def interval(self, metric: str, guesses: np.ndarray, against: np.ndarray | None = None) -> Interval:
        """Mean over seeds of a score, or of its difference to that of other guesses on the same seeds and samples.

        Two uncertainties are added in quadrature: of the seeds (Student's t interval of their mean) and of the test
        samples, or their groups (bootstrap standard errors times a quantile of Student's t: 1.96 but where they are
        few, and without bound where there is one; Wilson's interval where all are right). With one seed the first
        cannot be known and is left out. Resamplings that lack a class which the metric asks for say nothing and are
        left out too.

        Args:
            metric: see `score`.
            guesses: (S, N) guessed classes; for rankings, how sure each is (see `score`).
            against: (S, N) guesses to compare with.
        """
        each = self.scores(metric, guesses)
        spread = score(metric, self._truth(metric), guesses, self.weights).mean(axis=0)
        if against is not None:
            each = each - self.scores(metric, against)
            spread = spread - score(metric, self._truth(metric), against, self.weights).mean(axis=0)
        of_seeds = student(len(each)) * each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else 0.0
        spread = spread[~np.isnan(spread)]
        half = math.hypot(of_seeds, self._of_samples(metric, float(spread.std(ddof=1)) if len(spread) > 1 else 0.0))
        return Interval.around(float(each.mean()), half, floor=0.0 if against is None else -1.0)

    def _of_samples(self, metric: str, error: float) -> float:
        """How far to each side a score may be off for its test samples, by its bootstrap standard error."""
        if self.count == 1:
            return math.inf
        if error > 1e-9:  # resampling few units shows (n − 1)/n of their variance
            return error * student(self.count) * math.sqrt(self.count / (self.count - 1))
        # right in every resampling, or alike: Wilson's interval of so many successes (1927)
        classes = np.bincount(self.y)
        successes = len(self.y)
        if metric in RANKINGS:
            successes = int(classes[self.positive])
        elif metric in EVEN:
            successes = int(classes[classes > 0].min())
        return 1.96**2 / (successes + 1.96**2)


def student(count: int) -> float:
    """The 97.5 % quantile of Student's t with count - 1 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975))


def labels_saved(curve: Mapping[int, Resampled], target: Resampled) -> tuple[float | None, float, float | None]:
    """How many labels a learning curve needs to reach `target`, and the ends of its 95 % interval (see `TestPart`).

    None where it never does; numbers are no smaller than the smallest budget.

    Args:
        curve: by number of labels.
    """
    labels = sorted(curve)
    draws = np.stack([curve[n].draws for n in labels] + [target.draws], axis=1)
    found = [labels_needed(labels, row[:-1], row[-1]) for row in draws[~np.isnan(draws).any(axis=1)].tolist()]
    ranked = sorted(math.inf if needed is None else needed for needed in found)
    low, high = (ranked[round(share * (len(ranked) - 1))] for share in (0.025, 0.975))
    most = labels_needed(labels, [curve[n].score for n in labels], target.score)
    return most, min(low, float(labels[-1])), None if math.isinf(high) else high


def labels_needed(labels: Sequence[int], scores: Sequence[float], target: float) -> float | None:
    """How many labels a learning curve needs to reach `target`; None if it never does.

    The curve is its running maximum (more labels are taken not to hurt), linear in the logarithm of the labels between
    the budgets. The answer is the smallest budget where that is enough already.

    Args:
        labels: of each budget, ascending.
        scores: of each budget.
        target: score to reach.
    """
    best = np.maximum.accumulate(np.asarray(scores, dtype=float))
    if target > best[-1]:
        return None
    place = int(np.searchsorted(best, target))
    if place == 0:
        return float(labels[0])
    share = (target - best[place - 1]) / (best[place] - best[place - 1])
    low, high = math.log(labels[place - 1]), math.log(labels[place])
    return math.exp(low + share * (high - low))
