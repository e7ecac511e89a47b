"""Scores, what their uncertainty is, and how many labels a score is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from labelfree.tasks.metrics import EVEN, RANKINGS, score

#: Resamplings of the test part, fewer where it is so large that they would fill the memory.
RESAMPLES, WEIGHTS = 200, 20_000_000
#: How well a class is told is hardly known from fewer groups than this.
FEW_GROUPS = 5


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def around(cls, mean: float, middle: float, half: float, floor: float = 0.0) -> Interval:
        """`half` to each side of `middle`, and the mean in any case, within `floor` and 1."""
        return cls(mean, max(floor, min(mean, middle - half)), min(1.0, max(mean, middle + half)))


@dataclass(frozen=True)
class Resampled:
    """A mean score, and (R,) what it would be with other test samples and seeds: NaN where that is not known."""

    score: float
    draws: np.ndarray


class TestPart:
    """The test samples' classes, and the resamplings of them that say how much a score owes to which ones they are.

    Where each class counts the same and there are no groups, four samples a class are put beside those that are there:
    of two methods one gets the first and the second right, the other the first and the third (Agresti & Coull 1998;
    Agresti & Min 2005 for pairs). Few samples of a class that are all right would else be taken for certain.

    Args:
        y: (N,) classes.
        positive: the class that metrics of rankings look for.
        groups: (N,) groups; whole groups are resampled then, since their samples are alike.
        seed: of the resampling.
    """

    __test__ = False  # no test class, whatever pytest may think of its name

    def __init__(self, y: np.ndarray, groups: np.ndarray | None = None, seed: int = 0, positive: int = 1) -> None:
        self.y, self.positive, self.seed, self.grouped = y, positive, seed, groups is not None
        self._place = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.count = int(self._place.max()) + 1
        #: (C,) groups that have samples of each class, or samples where there are no groups
        classes = max(2, int(y.max()) + 1)
        self.units = np.bincount(np.unique(self._place * classes + y) % classes, minlength=classes)
        self._padding = np.repeat(np.unique(y), 4)

    @cached_property
    def _weights(self) -> np.ndarray:
        """(N, R) how often each sample is drawn."""
        return self._drawn(self.count, np.random.default_rng(self.seed))[self._place]

    @cached_property
    def _padded_weights(self) -> np.ndarray:
        """(N + 4 C, R) the same of the samples with those that are put beside them."""
        return self._drawn(len(self.y) + len(self._padding), np.random.default_rng((self.seed, 2)))

    def _drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        times = max(25, min(RESAMPLES, WEIGHTS // len(self.y)))
        return rng.multinomial(count, np.full(count, 1 / count), size=times).T.astype(np.float32)

    def scores(self, metric: str, guesses: np.ndarray) -> np.ndarray:
        """(S,) score of each row of guesses (S, N)."""
        return score(metric, self._truth(metric), guesses)[:, 0]

    def resampled(self, metric: str, guesses: np.ndarray, beside: bool = False) -> Resampled:
        """The mean over seeds of a score; test samples and seeds (S, N) are drawn again, for all methods alike.

        Draws lie as wide about the mean as its interval does.

        Args:
            metric: see `score`.
            guesses: as `interval` takes them.
            beside: whether they are what others are compared with.
        """
        each = self.scores(metric, guesses)
        drawn = self._resamplings(metric, guesses, beside)[1].mean(axis=0)
        half, error = self._of_samples(metric, drawn), _error(drawn)
        if math.isinf(half):
            return Resampled(float(each.mean()), np.full(len(drawn), np.nan))
        draws = (drawn - np.nanmean(drawn)) * (half / 1.96 / error if error else 0.0)
        if len(each) > 1:
            seeds = np.random.default_rng((self.seed, 1)).integers(0, len(each), (len(each), len(draws)))
            draws += (each[seeds].mean(axis=0) - each.mean()) * widened(len(each)) / 1.96
        return Resampled(float(each.mean()), each.mean() + draws)

    def _truth(self, metric: str) -> np.ndarray:
        return self.y == self.positive if metric in RANKINGS else self.y

    def _resamplings(self, metric: str, guesses: np.ndarray, beside: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(S, N) guesses → (S,) scores, and (S, R) what they would be with other test samples."""
        truth, weights = self._truth(metric), None
        if metric in EVEN and not self.grouped:
            truth, weights = np.append(truth, self._padding), self._padded_weights
            right = np.array([True, False, True, False] if beside else [True, True, False, False])
            padding = np.where(np.tile(right, len(self._padding) // 4), self._padding, -1)
            guesses = np.hstack([guesses, np.broadcast_to(padding, (len(guesses), len(padding)))])
        drawn = score(metric, truth, guesses, self._weights if weights is None else weights, some=self.grouped)
        return score(metric, truth, guesses)[:, 0], drawn

    def interval(self, metric: str, guesses: np.ndarray, against: np.ndarray | None = None) -> Interval:
        """Mean over seeds of a score, or of its difference to that of other guesses on the same seeds and samples.

        Two uncertainties are added in quadrature: of the seeds (Student's t interval of their mean) and of the test
        samples, or their groups (bootstrap standard errors times a quantile of Student's t: 1.96 but where they are
        few, and without bound where there is one; Wilson's interval where all are right). With one seed the first
        cannot be known and is left out. Resamplings that lack what a ranking looks for say nothing and are left out
        too; where most do, there is no bound.

        Args:
            metric: see `score`.
            guesses: (S, N) guessed classes, or (1, N) where seeds do not differ; for rankings, how sure each is (see
                `score`).
            against: (S, N) or (1, N) guesses to compare with.
        """
        each, (middle, drawn) = self.scores(metric, guesses), self._resamplings(metric, guesses)
        of_all, spread = middle.mean(), drawn.mean(axis=0)
        if against is not None:
            each = each - self.scores(metric, against)
            middle, drawn = self._resamplings(metric, against, beside=True)
            of_all, spread = of_all - middle.mean(), spread - drawn.mean(axis=0)
        of_seeds = student(len(each)) * each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else 0.0
        half = math.hypot(of_seeds, self._of_samples(metric, spread))
        return Interval.around(float(each.mean()), float(of_all), half, floor=0.0 if against is None else -1.0)

    def _of_samples(self, metric: str, drawn: np.ndarray) -> float:
        """How far to each side a score may be off for its test samples, by its resamplings (R,)."""
        sought = int(self.units[self.positive]) if metric in RANKINGS else self.count
        if self.count == 1 or (self.grouped and sought == 1) or np.isnan(drawn).mean() > 0.5:
            return math.inf
        hardly = self._hardly_known() if metric in EVEN and self.grouped else 0.0
        if error := _error(drawn):
            return math.hypot(error * widened(self.count), hardly)
        # right in every resampling, or alike: Wilson's interval of so many successes (1927)
        return math.hypot(1.96**2 / (sought + 1.96**2), hardly)

    def _hardly_known(self) -> float:
        """How far the mean over classes may be off for those that few of the groups have, which may lack in most
        resamplings: the whole weight of a class that one group has, a quarter of it for four.
        """
        units = self.units[self.units > 0]
        return float(np.linalg.norm(1 / units[units < min(FEW_GROUPS, self.count)])) / len(units)


def _error(drawn: np.ndarray) -> float:
    """The standard deviation of resamplings (R,), 0 where they do not differ but by rounding."""
    known = drawn[~np.isnan(drawn)]
    error = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return error if error > 1e-9 else 0.0


def widened(count: int) -> float:
    """Standard errors to each side of a 95 % interval, of those that resampling `count` units shows: it shows
    (n − 1)/n of their variance.
    """
    return student(count) * math.sqrt(count / (count - 1))


def student(count: int) -> float:
    """The 97.5 % quantile of Student's t with count - 1 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975))


def labels_saved(curve: Mapping[int, Resampled], target: Resampled) -> tuple[float | None, float, float | None]:
    """How many labels a learning curve needs to reach `target`, and the ends of its 95 % interval (see `TestPart`).

    None where it never does; numbers are no smaller than the smallest budget. Where nothing is known of other test
    samples, the interval is all that was tried, and more.

    Args:
        curve: by number of labels.
    """
    labels = sorted(curve)
    draws = np.stack([curve[n].draws for n in labels] + [target.draws], axis=1)
    found = [labels_needed(labels, row[:-1], row[-1]) for row in draws[~np.isnan(draws).any(axis=1)].tolist()]
    most = labels_needed(labels, [curve[n].score for n in labels], target.score)
    if not found:
        return most, float(labels[0]), None
    ranked = sorted(math.inf if needed is None else needed for needed in found)
    low, high = (ranked[round(share * (len(ranked) - 1))] for share in (0.025, 0.975))
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
