"""The verdict in words: failure comes first, and numbers are those that were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from labelfree.evaluation.statistics import Interval, Resampled
from labelfree.evaluation.verdict import Comparison, label_saving, verdict


def compare(budget: str, labels: int, score: float, other: float, half: float = 0.02) -> Comparison:
    gain = score - other
    interval = Interval(gain, gain - half, gain + half)
    return Comparison(budget, labels, "linear", score, "scratch", "finetune", other, interval)


def test_no_help_is_said_first() -> None:
    words = verdict([compare("1%", 10, 0.49, 0.505), compare("10%", 100, 0.6, 0.7)], {}, "accuracy")
    assert words.startswith("Pretraining did not help: with 1% and 10% of the labels")
    assert "60.0% accuracy" in words
    assert "−10.0 points" in words


def test_harm_is_called_harm() -> None:
    words = verdict([compare("1%", 10, 0.4, 0.5), compare("10%", 100, 0.6, 0.7)], {}, "accuracy")
    assert "the pretrained encoder did worse than the best baseline." in words


@pytest.mark.parametrize(
    ("gain", "half", "outcome"),
    [
        (0.05, 0.04, "helped"),
        (0.05, 0.06, "not known"),
        (0.0, 0.9, "not known"),
        (-0.01, 0.015, "did not help"),
        (-0.05, 0.04, "did worse"),
    ],
)
def test_what_the_interval_leaves_open_is_not_known(gain: float, half: float, outcome: str) -> None:
    found = compare("1%", 10, 0.5 + gain, 0.5, half)
    assert (found.measured, found.outcome) == (outcome, outcome)
    assert replace(found, seeds=1).outcome == "not known"
    starts = {
        "helped": "Pretraining helped with 1% of the labels.",
        "not known": "It is not known whether pretraining helped: with 1% of the labels the 95% interval of its gain "
        f"reaches from −{100 * (half - gain):.1f} to +{100 * (half + gain):.1f} points.",
    }
    words = verdict([found], {}, "accuracy")
    assert words.startswith(starts.get(outcome, "Pretraining did not help: with 1% of the labels"))


def test_a_test_part_that_gives_no_interval_is_too_little_to_say() -> None:
    found = replace(compare("10%", 25, 0.948, 0.94), gain=Interval(0.008, -1.0, 1.0))
    words = verdict([found, replace(found, budget="100%", labels=254)], {}, "accuracy")
    assert words.startswith("It is not known whether pretraining helped: with 10% and 100% of the labels the test part")
    assert "100.0" not in words
    assert words.endswith("(+0.8 points).")


def test_one_seed_is_named_in_the_sentence_that_answers() -> None:
    for gain, words in ((0.1, "pretraining helped"), (-0.1, "pretraining did not help"), (0, "it is not known")):
        found = replace(compare("5/class", 10, 0.5 + gain, 0.5), seeds=1)
        first = verdict([found], {}, "accuracy").partition(". ")[0]
        assert first.startswith(f"In the one seed that was measured, {words}")
        assert first.endswith("whether that holds for other seeds is not known")


def test_three_outcomes_stand_in_one_sentence() -> None:
    found = [compare("1%", 10, 0.5, 0.3), compare("10%", 100, 0.6, 0.7), compare("50%", 500, 0.7, 0.7, 0.03)]
    first, second, third, *_ = verdict(found, {}, "accuracy").split(". ")
    assert first == (
        "Pretraining helped with 1% of the labels; with 10% of the labels it did worse; with 50% of the labels that is "
        "not known: the 95% interval of its gain reaches from −3.0 to +3.0 points"
    )
    assert "With 1% of the labels (10)" in second
    assert "With 10% of the labels (100)" in third
    both = verdict([replace(c, gain=Interval(0, -0.04, 0.05)) for c in found[:2]], {}, "accuracy")
    assert both.startswith(
        "It is not known whether pretraining helped: with 1% and 10% of the labels the 95% intervals of its gain reach "
        "from −4.0 to +5.0 and from −4.0 to +5.0 points."
    )


def test_help_at_some_budgets_names_both() -> None:
    words = verdict([compare("1%", 10, 0.5, 0.3), compare("100%", 1000, 0.8, 0.9)], {}, "macro_f1")
    assert words.startswith("Pretraining helped with 1% of the labels; with 100% of the labels it did worse.")
    assert "50.0% macro F1" in words
    assert "90.0%" in words


def saved(found: Comparison, **curves: dict[int, float]) -> dict[str, dict[str, Any]]:
    """Label saving where other test samples, and seeds, would move all scores by as much as .1."""

    def sure(score: float) -> Resampled:
        return Resampled(score, np.full(21, score))

    ours = {found.budget: Resampled(found.score, found.score + np.linspace(-0.1, 0.1, 21))}
    return label_saving([found], ours, {k: {n: sure(v) for n, v in curve.items()} for k, curve in curves.items()})


def test_label_saving_is_in_the_verdict() -> None:
    found = compare("5/class", 10, 0.5, 0.3)
    saving = saved(found, scratch={10: 0.3, 100: 0.5, 1000: 0.7}, raw={10: 0.1, 1000: 0.2})
    about = {"relation": "about", "labels": 100, "factor": 10.0, "low": 32, "high": 316}
    assert saving["5/class"]["scratch"] == about
    beyond = {"relation": "more than", "labels": 1000, "factor": None, "low": 1000, "high": None}
    assert saving["5/class"]["raw"] == beyond
    words = verdict([found], saving, "accuracy")
    assert words.startswith("Pretraining helped with 10 labels.")
    assert "From scratch, that takes about 100 labels (10.0 times as many; 95% interval 32 to 316)." in words
    unsure = verdict([found], saved(found, scratch={10: 0.3, 100: 0.5, 1000: 0.55}), "accuracy")
    assert "95% interval 32 to more than were tried)." in unsure


def test_the_baseline_that_needs_the_fewest_labels_is_quoted() -> None:
    found = compare("1%", 10, 0.5, 0.3)
    words = verdict([found], saved(found, scratch={10: 0.1, 1000: 0.4}, raw={10: 0.3, 1000: 0.7}), "accuracy")
    assert "With raw features, that takes about 100 labels" in words
    assert "not enough" not in words


def test_of_trainings_that_time_cut_short_it_is_not_said_that_labels_are_not_enough() -> None:
    found = compare("1%", 10, 0.5, 0.3)
    ours = {"1%": Resampled(0.5, np.full(21, 0.5))}
    curve = {n: Resampled(score, np.full(21, score)) for n, score in ((10, 0.3), (1000, 0.4))}
    whole, cut = (label_saving([found], ours, {"scratch": curve}, short)["1%"] for short in ((), ["scratch"]))
    assert whole["scratch"]["relation"] == "more than"
    assert cut["scratch"] == {**whole["scratch"], "relation": "not known"}
    assert "From scratch" in verdict([found], {"1%": whole}, "accuracy")
    assert "From scratch" not in verdict([found], {"1%": cut}, "accuracy")


def test_a_training_that_time_cut_short_is_named() -> None:
    cut = replace(compare("10%", 100, 0.7, 0.5), steps=0.6)
    said = "For want of time, the network from scratch had {} of its steps only with {} of the labels."
    assert verdict([cut], {}, "accuracy").endswith(said.format("60%", "10%"))
    more, whole = replace(compare("20%", 200, 0.7, 0.5), steps=0.5), compare("50%", 500, 0.7, 0.5)
    assert verdict([cut, more, whole], {}, "accuracy").endswith(said.format("50% to 60%", "10% and 20%"))


def test_trees_that_were_not_measured_are_named() -> None:
    words = verdict([replace(compare("10%", 100, 0.7, 0.5), missing=("raw/boosting",))], {}, "accuracy")
    assert words.endswith("for want of time: gradient boosting on raw features.")


def test_raw_features_speak_where_scratch_was_not_measured() -> None:
    found = compare("1%", 10, 0.5, 0.3)
    words = verdict([found], saved(found, scratch={}, raw={10: 0.3, 1000: 0.4}), "accuracy")
    assert words.endswith("With raw features, 1,000 labels are not enough for that.")


def test_a_curve_that_ends_before_the_budget_says_nothing_of_it() -> None:
    saving = saved(compare("100%", 1000, 0.9, 0.1), scratch={10: 0.3}, raw={})
    assert set(saving["100%"]) == {"labels", "protocol", "score"}


def test_without_a_baseline_nothing_is_claimed() -> None:
    assert "not known" in verdict([], {}, "accuracy")


def test_beside_an_untrained_network_alone_nothing_is_claimed() -> None:
    interval = Interval(0.1, 0.05, 0.15)
    found = Comparison(
        "100%", 200, "linear", 0.9, "random", "linear", 0.8, interval, ("scratch", "raw"), True, share=False
    )
    words = verdict([found], {}, "accuracy")
    assert words.startswith("Whether pretraining helped is not known. Not measured with 200 labels")
    assert "the same network trained from scratch and raw features" in words
    no_better = replace(found, gain=Interval(0.0, -0.005, 0.005))
    assert verdict([no_better], {}, "accuracy").startswith("Pretraining did not help: with 200 labels")
    other = Comparison("5%", 50, "linear", 0.9, "raw", "linear", 0.8, interval, ("scratch",))
    another = Comparison("10%", 100, "linear", 0.9, "raw", "linear", 0.8, interval, ("scratch",))
    named = verdict([other, another], {}, "accuracy")
    assert named.endswith(
        "Not measured with 5% and 10% of the labels, for want of time: the same network trained from scratch."
    )
    unasked = verdict([replace(found, missing=())], {}, "accuracy")
    assert "Nothing but an untrained network was measured beside it." in unasked
    both = verdict([compare("1%", 10, 0.5, 0.3), found], {}, "accuracy")
    assert both.startswith("Pretraining helped with 1% of the labels.")
    assert "Not measured with 200 labels" in both


def test_shares_and_counts_are_not_mixed() -> None:
    words = verdict([compare("5/class", 25, 0.5, 0.3), compare("50%", 120, 0.6, 0.3)], {}, "accuracy")
    assert words.startswith("Pretraining helped with 25 and 120 labels.")


def test_a_share_of_labels_that_time_cut_is_called_by_its_number() -> None:
    found = Comparison("100%", 200, "linear", 0.9, "raw", "linear", 0.8, Interval(0.1, 0.05, 0.15), share=False)
    words = verdict([found], {}, "accuracy")
    assert words.startswith("Pretraining helped with 200 labels.")
    assert "%" not in words.partition("reaches")[0]
