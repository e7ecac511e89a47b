"""Labels: what is read, what is refused, how a few are chosen, how parts are split."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelfree.data.batch import Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.errors import LabelfreeError
from labelfree.tasks.labels import LabelBudget, Subset, _sorted, check_enough, choose, folds, is_uneven, read_labels


class Table(Dataset):
    """Columns without data."""

    def __init__(self, **columns: Sequence[object]) -> None:
        self.held = {name: np.asarray(values) for name, values in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.held.values())))

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return [Unreadable(i, self.name(i), "odd") if i % 2 else Sample(np.array([float(i)]), i) for i in indices]

    def describe(self) -> Description:
        return Description("table", len(self))

    def fingerprint(self) -> str:
        return "table"

    def columns(self) -> Sequence[str]:
        return list(self.held)

    def column(self, name: str) -> np.ndarray:
        return self.held[name] if name in self.held else super().column(name)


def test_classes_are_sorted_as_numbers_where_they_are_numbers() -> None:
    assert read_labels(Table(y=[10, 9, 10, 2]), "y").classes == ("2", "9", "10")
    assert read_labels(Table(y=[3.0, 1.0, np.nan]), "y").classes == ("1", "3")


def test_the_order_of_classes_is_that_of_their_words_where_numbers_do_not_tell() -> None:
    for words in (["1.0", "01", "1"], ["nan", "2", "10", "1"], ["b", "1", "a"]):
        for order in (words, words[::-1]):
            assert _sorted(dict.fromkeys(order)) == tuple(sorted(words))


def test_labels_of_bytes_need_be_no_text() -> None:
    assert read_labels(Table(y=[b"\xe9t\xe9", b"hiver", b"hiver"]), "y").classes == ("\\xe9t\\xe9", "hiver")


def test_samples_without_a_label_are_left_out_with_a_note() -> None:
    labels = read_labels(Table(y=np.array(["a", "", "b", None, " "], dtype=object)), "y")
    assert labels.y.tolist() == [0, -1, 1, -1, -1]
    assert labels.counts.tolist() == [1, 1]
    assert "3 of 5 samples have no value in 'y'" in labels.notes[0]


@pytest.mark.parametrize(
    "column",
    [
        ["a", "b", float("nan"), "b"],
        np.array(["a", "b", pd.NA, "b"], dtype=object),
        np.array(["a", "b", pd.NA, "b"], dtype=object).astype(str),
        np.array(["a", "b", pd.NaT, "b"], dtype=object),
        np.array(["a", "b", np.float32("nan"), "b"], dtype=object),
        pd.array(["a", "b", None, "b"], dtype="string"),
    ],
)
def test_what_is_missing_is_no_class_however_it_is_written(column: Sequence[object]) -> None:
    labels = read_labels(Table(y=column, who=column), "y", "who")
    assert (labels.classes, labels.y.tolist()) == (("a", "b"), [0, 1, -1, 1])
    assert len(labels.notes) == 2
    assert len(set(labels.groups.tolist())) == 3


def test_classes_whose_names_may_mean_no_label_are_noted() -> None:
    for column, name in (([-1, 0, 1], "-1"), (["a", "None", "b"], "None"), (["null", "a"], "null")):
        assert read_labels(Table(y=column), "y").notes == [
            f"'{name}' is a class of 'y': if it stands for no label, empty it."
        ]
    assert read_labels(Table(y=[-1, 1]), "y").notes == []


def test_test_samples_of_unknown_classes_are_left_out_with_a_note() -> None:
    labels = read_labels(Table(y=["a", "z", "b"]), "y", classes=("a", "b"))
    assert labels.y.tolist() == [0, -1, 1]
    assert "'z'" in labels.notes[0]


def test_classes_of_the_training_source_are_not_doubted_for_a_small_test_source() -> None:
    grades = np.arange(100) / 2  # as many of them are classes among 2,000 training rows
    assert read_labels(Table(y=np.tile(grades, 20)), "y").classes[:3] == ("0", "0.5", "1")
    found = read_labels(Table(y=np.tile(grades, 5)), "y", classes=tuple(f"{grade:g}" for grade in grades))
    assert (found.y >= 0).all()
    assert read_labels(Table(y=["b", "b"]), "y", classes=("a", "b")).y.tolist() == [1, 1]


@pytest.mark.parametrize("label", [1, np.zeros(3)])
def test_labels_themselves_are_no_name_of_a_column(label: object) -> None:
    with pytest.raises(LabelfreeError, match="name of a column"):
        read_labels(Table(y=["a", "b", "a"]), label)  # type: ignore[arg-type]


def test_a_test_source_of_other_classes_only_says_which_it_has_and_which_are_known() -> None:
    with pytest.raises(LabelfreeError, match=r"'poor', 'rich' where 'a', 'b' are known"):
        read_labels(Table(y=["rich", "poor", "rich"]), "y", classes=("a", "b"))
    with pytest.raises(LabelfreeError, match=r"'5' and 4 more where"):
        read_labels(Table(y=[str(i) for i in range(1, 10)]), "y", classes=("a", "b"))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", "a"], "only 'a'"),
        (["", ""], "no value"),
        (np.linspace(0, 1, 200), "200 different numbers"),
    ],
)
def test_columns_that_are_no_classes_are_refused(column: Sequence[object], words: str) -> None:
    with pytest.raises(LabelfreeError, match=words):
        read_labels(Table(y=column), "y")


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(LabelfreeError, match=r"no column 'speces'.*Did you mean 'species'"):
        read_labels(Table(species=["a", "b"]), "speces")


def test_a_class_with_one_label_is_named() -> None:
    with pytest.raises(LabelfreeError, match="at least 2 labelled samples: 'b' has 1"):
        check_enough(read_labels(Table(y=["a", "a", "b"]), "y"), "y", 2)


@pytest.mark.parametrize(
    ("word", "counts", "taken"),
    [
        ("10%", [100, 50], [10, 5]),
        ("1%", [100, 50], [2, 2]),
        (0.1, [100, 50], [10, 5]),
        ("5/class", [100, 3], [5, 3]),
        ("1/class", [100, 3], [1, 1]),
        (30, [100, 50], [20, 10]),
        ("100%", [100, 50], [100, 50]),
        ("999", [100, 50], [100, 50]),
    ],
)
def test_budgets_take_a_share_of_each_class(word: str | float | int, counts: list[int], taken: list[int]) -> None:
    assert LabelBudget.parse(word).quotas(np.array(counts)).tolist() == taken


@pytest.mark.parametrize("word", ["0%", "101%", "-3", "0/class", "many", "1.5", ""])
def test_words_that_are_no_budget_are_refused(word: str) -> None:
    with pytest.raises(LabelfreeError, match="not a label budget"):
        LabelBudget.parse(word)


def test_smaller_budgets_lie_within_larger_ones() -> None:
    y = np.repeat([0, 1, 2], 30)
    few = choose(y, np.array([2, 2, 2]), np.random.default_rng(5))
    many = choose(y, np.array([9, 9, 9]), np.random.default_rng(5))
    assert set(few) < set(many)
    assert np.bincount(y[few]).tolist() == [2, 2, 2]


def test_a_sample_without_a_group_is_a_group_alone() -> None:
    found = read_labels(Table(y=["a", "b"] * 3, who=[1.0, None, 1, float("nan"), 2, "2"]), "y", "who")
    assert found.groups[[0, 2, 4, 5]].tolist() == ["1", "1", "2", "2"]
    assert len(set(found.groups.tolist())) == 4
    assert "2 samples have no value in 'who'" in found.notes[0]


def test_budgets_of_grouped_data_open_few_groups() -> None:
    y, groups = np.tile([0, 1], 100), np.repeat(np.arange(20), 10)
    taken = choose(y, np.array([10, 10]), np.random.default_rng(0), groups)
    assert len(np.unique(groups[taken])) == 2
    assert len(np.unique(groups[choose(y, np.array([10, 10]), np.random.default_rng(0))])) > 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=10, max_size=80), st.integers(0, 9), st.integers(2, 12))
def test_folds_spread_classes_evenly_and_keep_groups_whole(y: list[int], seed: int, groups: int) -> None:
    labels, rng = np.array(y), np.random.default_rng(seed)
    plain = folds(labels, 5, rng)
    for c in np.unique(labels):
        sizes = np.bincount(plain[labels == c], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    names = np.array([f"g{i % groups}" for i in range(len(y))])
    grouped = folds(labels, 5, rng, names)
    assert all(len(np.unique(grouped[names == name])) == 1 for name in np.unique(names))
    assert len(np.unique(grouped)) == min(5, len(np.unique(names)))


def test_what_is_held_out_is_not_the_largest_group() -> None:
    groups = np.repeat(np.arange(9), [300, *[20] * 8])
    for seed in range(4):
        held = folds(np.arange(len(groups)) % 2, 5, np.random.default_rng(seed), groups) == 0
        assert 0 < held.sum() <= 60


@pytest.mark.parametrize(
    ("sizes", "low", "high"),
    [
        ([500, 500, 500, 20, 20, 20], 0.3, 0.34),
        ([100] * 10, 0.1, 0.3),
        ([900, 50, 50, 40, 60, 70, 30, 80, 20, 60], 0.0, 0.15),
        (np.arange(10, 60).tolist(), 0.15, 0.25),
    ],
)
def test_groups_that_are_held_out_are_about_a_fifth_and_others_with_another_seed(
    sizes: list[int], low: float, high: float
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    y, drawn = np.arange(len(groups)) % 2, set()
    for seed in range(12):
        held = folds(y, 5, np.random.default_rng(seed), groups) == 0
        assert low <= held.mean() <= high
        drawn.add(tuple(np.unique(groups[held])))
    assert len(drawn) >= 3


def test_groups_that_are_held_out_leave_samples_of_each_class() -> None:
    groups = np.repeat(np.arange(6), 50)
    y = np.where(groups == 0, 2, np.arange(300) % 2)  # one class lies within one group
    for seed in range(12):
        held = folds(y, 5, np.random.default_rng(seed), groups) == 0
        assert set(y[~held]) == {0, 1, 2}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_labels_are_the_first_of_each_class_in_a_random_order(classes: list[int], quotas: list[int]) -> None:
    y, groups = np.array(classes), np.arange(len(classes)) // 3

    def taken(order: np.ndarray) -> list[int]:
        return sorted(np.concatenate([order[y[order] == c][:quota] for c, quota in enumerate(quotas)]).tolist())

    rng = np.random.default_rng(1)
    order = rng.permutation(len(y))
    assert choose(y, np.array(quotas), np.random.default_rng(1)).tolist() == taken(order)
    rank = rng.permutation(np.unique(groups))
    opened = order[np.argsort(np.argsort(rank)[groups[order]], kind="stable")]
    assert choose(y, np.array(quotas), np.random.default_rng(1), groups).tolist() == taken(opened)


def test_folds_of_groups_hold_no_table_of_groups_and_classes() -> None:
    y, groups = np.arange(8000) % 2000, np.arange(8000) // 2
    tracemalloc.start()
    try:
        fold = folds(y, 5, np.random.default_rng(0), groups)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * 4000 * 2000 / 10
    assert np.bincount(fold).min() > 1500


def test_folds_of_what_happened_in_order_are_stretches_of_each_class_and_the_first_is_the_last() -> None:
    y = np.array([0, 1, 0, 0, 1, 0, 0, 2])
    fold = folds(y, 5, np.random.default_rng(0), chronological=True)
    assert fold[y == 0].tolist() == [4, 3, 2, 1, 0]
    assert fold[y == 1].tolist() == [2, 0]
    assert fold[y == 2].tolist() == [0]


def test_a_subset_counts_its_samples_anew() -> None:
    subset = Subset(Table(y=["a", "b", "c", "d"]), np.array([2, 1]))
    first, second = subset.read([0, 1])
    assert isinstance(first, Sample)
    assert (first.index, first.data.tolist()) == (0, [2.0])
    assert isinstance(second, Unreadable)
    assert (second.index, second.name) == (1, "row 1")
    assert subset.column("y").tolist() == ["c", "b"]
    assert subset.name(0) == "row 2"


def test_uneven_means_more_than_threefold() -> None:
    assert not is_uneven(np.array([30, 10]))
    assert is_uneven(np.array([31, 10]))
