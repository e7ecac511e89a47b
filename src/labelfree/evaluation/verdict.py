"""What the scores mean, in words: did pretraining help, and how many labels did it save?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from labelfree.evaluation.statistics import Interval, Resampled, labels_saved

#: The baselines by method, and by protocol where a method has several.
RIVALS = {
    "scratch": "the same network trained from scratch",
    "random": "a random frozen encoder",
    "raw": "raw features with logistic regression",
    "raw/boosting": "gradient boosting on raw features",
}
#: Protocols, with the other classical model of raw features, in the order of the results.
SHOWN = ("knn", "linear", "boosting", "finetune")
WAYS = {"knn": "nearest neighbours", "linear": "linear probe", "finetune": "fine-tuned"}
NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"} | {
    "average_precision": "average precision",
    "roc_auc": "area under the ROC curve",
}
#: A gain that does not reach so far is none.
MARGIN = 0.01
Outcome = Literal["helped", "did not help", "did worse", "not known"]


@dataclass(frozen=True)
class Comparison:
    """At one budget: the pretrained encoder, used in the way that validation preferred, beside the best baseline.

    Attributes:
        budget: its name.
        labels: how many labels it is.
        way: protocol in which the pretrained encoder was used.
        score: its mean score.
        baseline: method of the best baseline, by test score (which favours the baseline).
        baseline_way: protocol in which that was used.
        other: the baseline's mean score.
        gain: their difference, on the same seeds and test samples.
        missing: baselines that were asked for and not measured here: keys of `RIVALS`.
        alone: whether an untrained encoder is all that was measured beside it.
        share: whether the budget may be called a share of the labels: no class's two labels at least make it much
            more, and time left none out.
        seeds: how many were measured.
        steps: the share of its steps for which there was time to train the network from scratch.
    """

    budget: str
    labels: int
    way: str
    score: float
    baseline: str
    baseline_way: str
    other: float
    gain: Interval
    missing: tuple[str, ...] = ()
    alone: bool = False
    share: bool = True
    seeds: int = 3
    steps: float = 1.0

    @property
    def measured(self) -> Outcome:
        """What the numbers tell of the seeds and baselines that were measured."""
        if self.gain.low > 0:
            return "helped"
        if self.gain.high < 0:
            return "did worse"
        return "did not help" if self.gain.high < MARGIN else "not known"

    @property
    def bounded(self) -> bool:
        """Whether the gain has an interval: the test part may be of one group, which says nothing of others."""
        return self.gain.low > -1 or self.gain.high < 1

    @property
    def decided(self) -> bool:
        """Whether the numbers tell: to beat an untrained encoder alone proves nothing, not to beat it does."""
        return not (self.alone and self.measured == "helped")

    @property
    def outcome(self) -> Outcome:
        """Whether pretraining helped, whatever the seed: from one that is not known."""
        return self.measured if self.decided and self.seeds > 1 else "not known"


def verdict(comparisons: Sequence[Comparison], saving: Mapping[str, Any], metric: str) -> str:
    """A few plain sentences; where pretraining did not help, that comes first, and what was not measured is named."""
    if not comparisons:
        return "Whether pretraining helped is not known: no baseline was evaluated."
    decided = [c for c in comparisons if c.decided]
    missing = _missing_words(comparisons)
    if not decided:
        best = max(comparisons, key=lambda c: c.gain.mean)
        beside = "" if missing else " Nothing but an untrained network was measured beside it."
        return f"Whether pretraining helped is not known.{missing}{beside} {_numbers(best, metric)}"
    return _answer(decided, saving, metric) + missing


def _missing_words(comparisons: Sequence[Comparison]) -> str:
    """What was asked for and not measured, or not to its end, and with how many labels."""
    words = ""
    for missing in dict.fromkeys(c.missing for c in comparisons if c.missing):
        names = " and ".join(RIVALS[name] for name in missing)
        words += f" Not measured {_at([c for c in comparisons if c.missing == missing])}, for want of time: {names}."
    if cut := [c for c in comparisons if c.steps < 1]:
        shares = [f"{share:.0%}" for share in sorted({min(c.steps for c in cut), max(c.steps for c in cut)})]
        words += f" For want of time, the network from scratch had {' to '.join(shares)} of its steps only {_at(cut)}."
    return words


def _answer(comparisons: Sequence[Comparison], saving: Mapping[str, Any], metric: str) -> str:
    """Where pretraining helped, where it did not, and where that is not known, among comparisons that can tell."""
    helped = [c for c in comparisons if c.measured == "helped"]
    unknown = [c for c in comparisons if c.measured == "not known"]
    failed = [c for c in comparisons if c not in (*helped, *unknown)]
    facts, numbers = [], ""
    if helped:
        best = max(helped, key=lambda c: c.gain.mean)
        facts.append(f"pretraining helped {_at(helped)}")
        numbers += f" {_numbers(best, metric)}{_saving_words(saving.get(best.budget, {}))}"
    if failed:
        fact = "did worse" if all(c.measured == "did worse" for c in failed) else "was no better"
        lead = f"pretraining did not help: {_at(failed)} the pretrained encoder {fact} than the best baseline"
        facts.append(f"{_at(failed)} it {fact}" if helped else lead)
        numbers += f" {_numbers(min(failed, key=lambda c: c.gain.mean), metric)}"
    if unknown:
        reach = _reach_words(unknown)
        lead = f"it is not known whether pretraining helped: {_at(unknown)} {reach}"
        facts.append(f"{_at(unknown)} that is not known: {reach}" if facts else lead)
    if len(unknown) == len(comparisons):
        numbers = f" {_numbers(max(unknown, key=lambda c: c.gain.mean), metric)}"
    answer = "; ".join(facts)
    if comparisons[0].seeds == 1:
        answer = f"in the one seed that was measured, {answer}; whether that holds for other seeds is not known"
    return f"{answer[0].upper()}{answer[1:]}.{numbers}"


def _reach_words(comparisons: Sequence[Comparison]) -> str:
    """How far the gains' intervals reach."""
    if not any(c.bounded for c in comparisons):
        return "the test part is too little to say"
    reaches = " and ".join(f"from {_points(c.gain.low)} to {_points(c.gain.high)}" for c in comparisons)
    intervals = "interval of its gain reaches" if len(comparisons) == 1 else "intervals of its gain reach"
    return f"the 95% {intervals} {reaches} points"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _at(comparisons: Sequence[Comparison]) -> str:
    share = all(map(_is_share, comparisons))
    names = [c.budget if share else f"{c.labels:,}" for c in comparisons]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"with {joined} of the labels" if share else f"with {joined} labels"


def _is_share(c: Comparison) -> bool:
    """Whether the budget may be called a share of the labels."""
    return c.share and c.budget.endswith("%")


def _numbers(c: Comparison, metric: str) -> str:
    name = f"{c.budget} of the labels ({c.labels:,})" if _is_share(c) else f"{c.labels:,} labels"
    gain, low, high = map(_points, (c.gain.mean, c.gain.low, c.gain.high))
    points = f"{gain} points" + (f", 95% interval {low} to {high}" if c.bounded else "")
    rival = RIVALS.get(f"{c.baseline}/{c.baseline_way}", RIVALS[c.baseline])
    return (
        f"With {name} it reaches {c.score:.1%} {NAMES[metric]} ({WAYS[c.way]}); {rival} reaches "
        f"{c.other:.1%} ({points})."
    )


def _saving_words(entry: Mapping[str, Any]) -> str:
    """How many labels the baseline that needs the fewest does need for the same: the network from scratch, or raw
    features.
    """
    order = ("at most", "about", "more than")
    needs = {who: entry[who] for who in ("scratch", "raw") if who in entry and entry[who]["relation"] in order}
    who = min(needs, key=lambda who: (order.index(needs[who]["relation"]), needs[who]["labels"]), default=None)
    if who is None or needs[who]["relation"] == "at most":
        return ""
    name, need = {"scratch": "From scratch", "raw": "With raw features"}[who], needs[who]
    if need["relation"] == "more than":
        return f" {name}, {need['labels']:,} labels are not enough for that."
    times = f"{need['factor']:.1f} times as many; " if need["factor"] > 1.05 else ""
    return f" {name}, that takes about {need['labels']:,} labels ({times}95% interval {between(need)})."


def between(need: Mapping[str, Any]) -> str:
    """The ends of the interval of labels that are needed, in words."""
    return f"{need['low']:,} to " + ("more than were tried" if need["high"] is None else f"{need['high']:,}")


def label_saving(
    comparisons: Sequence[Comparison],
    ours: Mapping[str, Resampled],
    curves: Mapping[str, Mapping[int, Resampled]],
    short: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """For each budget: how many labels the baselines need to reach what the pretrained encoder reaches.

    Args:
        comparisons: one a budget.
        ours: the pretrained encoder's score by budget.
        curves: for "scratch" and "raw", the score by number of labels.
        short: those whose training time has cut short: with all of it their labels might be enough.

    Returns:
        By budget: "labels", "protocol", "score", and for each baseline {"relation", "labels", "factor", "low", "high"}:
        it needs "about", "at most" (its smallest budget is enough) or "more than" (its largest is not) so many labels,
        which is `factor` times as many; None where it is more than that, or "not known", since its largest is not
        enough but time has cut it short. `low` and `high` are the 95% interval; None
        where it has no end among the budgets.
    """
    saving = {}
    for c in comparisons:
        entry: dict[str, Any] = {"labels": c.labels, "protocol": c.way, "score": c.score}
        for method, curve in curves.items():
            counts = sorted(curve)
            # a curve that ends before this budget says nothing of it
            if counts and counts[-1] >= c.labels:
                needed, low, high = labels_saved(curve, ours[c.budget])
                relation = "not known" if method in short else "more than"
                if needed is not None:
                    relation = "at most" if needed <= counts[0] else "about"
                labels = counts[-1] if needed is None else round(needed)
                factor = None if needed is None else round(needed / c.labels, 2)
                entry[method] = {"relation": relation, "labels": labels, "factor": factor, "low": round(low)}
                entry[method]["high"] = None if high is None else round(high)
        saving[c.budget] = entry
    return saving
