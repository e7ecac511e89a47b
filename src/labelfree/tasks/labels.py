"""Labels: read from a source, checked, a few of them chosen, split into parts. Nothing here touches a network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.errors import LabelfreeError

#: More different numbers than this, in more than a tenth of the rows, are a quantity and not classes.
MOST_NUMBERS = 50
#: What numpy writes for values that are missing, where it makes text of a column.
GONE = ("nan", "<NA>")
#: Names of classes that may stand for no label: -1 is scikit-learn's.
DOUBTFUL = ("-1", "none", "null", "nan", "na", "n/a", "#n/a", "missing")
#: Classes are uneven where the largest has more than so many times the samples of the smallest.
UNEVEN = 3.0


class Subset(Dataset):
    """Some samples of a dataset, counted anew from 0."""

    def __init__(self, dataset: Dataset, rows: np.ndarray) -> None:
        self._dataset, self._rows = dataset, np.asarray(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        items = self._dataset.read([int(self._rows[i]) for i in indices])
        return [replace(item, index=int(i)) for i, item in zip(indices, items, strict=True)]

    def collated(self) -> Batch | None:
        batch = self._dataset.collated()
        rows = torch.as_tensor(self._rows)
        return None if batch is None else batch[rows].with_(index=torch.arange(len(self)))

    def sizes(self) -> np.ndarray | None:
        sizes = self._dataset.sizes()
        return None if sizes is None else sizes[self._rows]

    def shown(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return self._dataset.shown([int(self._rows[i]) for i in indices])

    def describe(self) -> Description:
        return replace(self._dataset.describe(), count=len(self))

    def fingerprint(self) -> str:
        return self._dataset.fingerprint()

    def origin(self) -> tuple[Dataset, np.ndarray]:
        source, rows = self._dataset.origin()
        return source, rows[self._rows]

    def name(self, index: int) -> str:
        return self._dataset.name(int(self._rows[index]))

    def columns(self) -> Sequence[str]:
        return self._dataset.columns()

    def column(self, name: str) -> np.ndarray:
        return self._dataset.column(name)[self._rows]


@dataclass(frozen=True)
class Part:
    """Labelled samples.

    Attributes:
        dataset: an opened source, cached or not.
        rows: (N,) places in it.
        y: (N,) classes.
        groups: (N,) names of groups, which no split may cut, or None.
        chronological: whether samples come in the order in which they happened: what is held out must be the last.
    """

    dataset: Dataset
    rows: np.ndarray
    y: np.ndarray
    groups: np.ndarray | None = None
    chronological: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, which: np.ndarray) -> Self:
        """Those that `which` (bool or places) points at."""
        groups = None if self.groups is None else self.groups[which]
        return replace(self, rows=self.rows[which], y=self.y[which], groups=groups)

    def alone(self) -> Dataset:
        """A dataset of these samples and no others."""
        return Subset(self.dataset, self.rows)

    def names(self, places: np.ndarray) -> list[str]:
        return [self.dataset.name(int(self.rows[place])) for place in places]


def _words(column: np.ndarray) -> list[str | None]:
    """(N,) labels as text; None where there is none."""
    words = [_word(value) for value in column.tolist()]
    return [None if word in GONE else word for word in words] if column.dtype.kind == "U" else words


def _word(value: object) -> str | None:
    """A label as text; None where there is none. 3 and 3.0 are one class; bytes that are no text are spelt out."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' need no import
        return None
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return None
        value = int(value) if float(value).is_integer() else value
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return str(value).strip() or None


@dataclass(frozen=True)
class Labels:
    """The labels of a source.

    Attributes:
        classes: their names, sorted (by number where all are numbers).
        y: (N,) int64 number of the class, -1 for a sample without a label.
        groups: (N,) name of the group (patient, device, document) of each sample, or of the recording that it is a
            piece of; None where each sample stands alone.
        pieces: whether the groups are recordings, which nobody has named.
        notes: sentences that a person ought to read.
    """

    classes: tuple[str, ...]
    y: np.ndarray
    groups: np.ndarray | None = None
    pieces: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> np.ndarray:
        """(C,) labelled samples of each class."""
        return np.bincount(self.y[self.y >= 0], minlength=len(self.classes))

    def groups_of(self, rows: np.ndarray) -> tuple[np.ndarray | None, bool]:
        """(n,) groups of labelled samples, or None; and whether time must split them, since groups cannot.

        Recordings cannot where all pieces of some class are of one.
        """
        if self.groups is None or not self.pieces:
            return (None if self.groups is None else self.groups[rows]), False
        recordings = np.unique(self.groups[rows], return_inverse=True)[1]
        classes, _ = np.unique(np.stack([self.y[rows], recordings]), axis=1)
        alone = np.unique(classes, return_counts=True)[1].min(initial=2) < 2
        return (None, True) if alone else (self.groups[rows], False)


def read_labels(
    dataset: Dataset, label: str, group: str | None = None, classes: Sequence[str] = (), least: int = 2
) -> Labels:
    """The label column of a source, and its group column.

    Args:
        dataset: an opened source.
        label: name of the column.
        group: name of the column whose equal values must stay on one side of every split; without one, pieces of one
            recording stay together.
        classes: those that are known, where this is the test source those of the training source: others are left out,
            with a note.
        least: classes that there must be, where none are given; a single one is noted.

    Raises:
        LabelfreeError: no such column, no labels; where no classes are given, numbers instead of classes, or too few.
    """
    if not isinstance(label, str):
        raise LabelfreeError(
            f"label is the name of a column, and a {type(label).__name__} was given.",
            'Give arrays under names: {"x": x, "label": y} with label="label".',
        )
    raw = np.asarray(dataset.column(label))
    words = _words(raw)
    known = tuple(classes) or _found(raw, words, label, least)
    number = {name: i for i, name in enumerate(known)}
    y = np.array([-1 if word is None else number.get(word, -1) for word in words], dtype=np.int64)
    notes = []
    if missing := sum(word is None for word in words):
        notes.append(f"{missing:,} of {len(words):,} samples have no value in '{label}' and are left out.")
    if len(known) == 1 and not classes:
        notes.append(f"'{label}' has only '{known[0]}': no class can be told from another.")
    if not classes:
        notes += [
            f"'{name}' is a class of '{label}': if it stands for no label, empty it." for name in _doubtful(known)
        ]
    if strange := Counter(word for word in words if word is not None and word not in number):
        names = ", ".join(f"'{name}'" for name, _ in strange.most_common(3))
        notes.append(f"{strange.total():,} samples are of classes that are not among those known ({names}); left out.")
    if (y < 0).all() and strange:
        raise LabelfreeError(
            f"No class of '{label}' is a known one: there are {_some(sorted(strange))} where {_some(known)} are known.",
            "Write the classes alike in the training and the test source.",
        )
    if (y < 0).all():
        raise LabelfreeError(f"No sample has a usable label in '{label}'.", "Name the column that holds the classes.")
    if group is None:
        groups = _recordings(dataset)
        return Labels(known, y, groups, groups is not None, notes)
    groups, alone = _groups(dataset, group)
    notes += [f"{alone:,} samples have no value in '{group}', and are each a group alone."] if alone else []
    return Labels(known, y, groups, notes=notes)


def _doubtful(classes: Sequence[str]) -> list[str]:
    """Classes that may stand for no label; -1 and another are often two classes."""
    return [name for name in classes if name.lower() in DOUBTFUL and (name != "-1" or len(classes) > 2)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _groups(dataset: Dataset, column: str) -> tuple[np.ndarray, int]:
    """(N,) group of each sample, and how many have none written: each of these is a group that no source shares."""
    words = _words(np.asarray(dataset.column(column)))
    alone = sum(word is None for word in words)
    source = dataset.fingerprint() if alone else ""
    return np.array([f"{source} {i}" if word is None else word for i, word in enumerate(words)]), alone


def _recordings(dataset: Dataset) -> np.ndarray | None:
    """(N,) the recording that each sample is a piece of, which no other source shares; None where none was cut."""
    source, places = dataset.origin()
    if source.cut_from is None or len(np.unique(source.cut_from[places])) == len(places):
        return None
    return np.char.add(f"{dataset.fingerprint()} ", source.cut_from[places].astype(str))


def _sorted(words: Iterable[str]) -> tuple[str, ...]:
    """By number where all are numbers ("01" and "1" are two words of one), else by letters."""
    try:
        numbers = {word: float(word) for word in words}
    except ValueError:
        return tuple(sorted(words))
    if any(math.isnan(number) for number in numbers.values()):
        return tuple(sorted(words))
    return tuple(sorted(words, key=lambda word: (numbers[word], word)))


def _found(raw: np.ndarray, words: Sequence[str | None], label: str, least: int) -> tuple[str, ...]:
    """The classes of a column. Raises LabelfreeError where its values are none."""
    classes = _sorted({word for word in words if word is not None})
    if raw.dtype.kind == "f" and len(classes) > max(MOST_NUMBERS, len(raw) / 10):
        raise LabelfreeError(
            f"Column '{label}' holds {len(classes):,} different numbers in {len(raw):,} rows: expected classes.",
            "Name a column of classes, or cut the numbers into ranges first.",
        )
    if len(classes) < least:
        found = f"only '{classes[0]}'" if classes else "no value"
        raise LabelfreeError(f"Column '{label}' has {found}: at least 2 classes are needed.", "Name another column.")
    return classes


def is_uneven(counts: np.ndarray) -> bool:
    """Whether classes differ so much in size that each should count the same, in losses and in scores."""
    return bool(counts.max() > UNEVEN * max(1, counts.min()))


def check_enough(labels: Labels, label: str, least: int) -> None:
    """Raises LabelfreeError naming the classes with fewer than `least` labelled samples."""
    poor = [(name, int(count)) for name, count in zip(labels.classes, labels.counts, strict=True) if count < least]
    if poor:
        named = ", ".join(f"'{name}' has {count}" for name, count in poor[:3]) + (" …" if len(poor) > 3 else "")
        raise LabelfreeError(
            f"Each class of '{label}' needs at least {least} labelled samples: {named}.",
            "Label more of them, or empty the label of these samples so that they are left out.",
        )


@dataclass(frozen=True)
class LabelBudget:
    """How many labels may be used: a share of them ("10%"), so many of each class ("5/class"), or a number ("200").

    Attributes:
        name: as it is reported.
        share, per_class, count: one of them is set.
    """

    name: str
    share: float | None = None
    per_class: int | None = None
    count: int | None = None

    @classmethod
    def parse(cls, word: str | float | int) -> LabelBudget:
        """Read "10%", "5/class", "200", 0.1 (a share) or 200.

        Raises:
            LabelfreeError: none of these, or nothing left of it.
        """
        text = str(word).strip().lower().replace(" ", "")
        try:
            if text.endswith("%"):
                budget = cls(f"{float(text[:-1]):g}%", share=float(text[:-1]) / 100)
            elif text.endswith("/class"):
                budget = cls(f"{int(text[:-6])}/class", per_class=int(text[:-6]))
            elif "." in text:
                budget = cls(f"{100 * float(text):g}%", share=float(text))
            else:
                budget = cls(str(int(text)), count=int(text))
        except ValueError:
            budget = cls(text, share=0.0)
        if not (0 < (budget.share or 0) <= 1 or (budget.per_class or 0) > 0 or (budget.count or 0) > 0):
            raise LabelfreeError(
                f"'{word}' is not a label budget: expected a share, a number per class or a number.",
                'Write for instance "10%", "5/class" or "200".',
            )
        return budget

    def quotas(self, counts: np.ndarray) -> np.ndarray:
        """(C,) labels to take of each class, out of `counts`: 2 at least where it is a share or a number."""
        if self.per_class is not None:
            return np.minimum(self.per_class, counts)
        share = self.share if self.share is not None else self.count / counts.sum()
        return np.minimum(np.maximum(np.round(share * counts).astype(int), 2), counts)


def choose(y: np.ndarray, quotas: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None) -> np.ndarray:
    """Places of `quotas` (C,) samples of each class, sorted. The same generator state gives nested choices.

    With groups, whole groups are opened in random order until the quotas can be met, since labels of a few patients are
    worth less than the same number spread over all of them.
    """
    order = rng.permutation(len(y))
    if groups is not None:
        rank = {group: i for i, group in enumerate(rng.permutation(np.unique(groups)).tolist())}
        order = order[np.argsort([rank[group] for group in groups[order].tolist()], kind="stable")]
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    before = np.arange(len(y)) - (np.cumsum(counts) - counts)[y[order]]  # of the same class
    return np.sort(order[before < quotas[y[order]]])


def folds(
    y: np.ndarray, count: int, rng: np.random.Generator, groups: np.ndarray | None = None, chronological: bool = False
) -> np.ndarray:
    """(N,) the fold, 0 … count-1, of each sample: classes spread evenly, groups kept whole.

    Where samples come as they happened (`chronological`), folds are stretches of each class, of which 0 is the last.
    """
    if groups is None and chronological:
        order = np.argsort(y, kind="stable")
        sizes = np.bincount(y)
        later = np.cumsum(sizes)[y[order]] - np.arange(1, len(y) + 1)  # samples of the class that come after
        fold = np.empty(len(y), dtype=np.int64)
        fold[order] = later * count // sizes[y[order]]
        return fold
    if groups is None:
        order = rng.permutation(len(y))
        order = order[np.argsort(y[order], kind="stable")]
        fold = np.empty(len(y), dtype=np.int64)
        fold[order] = np.arange(len(y)) % count
        return fold
    return _group_folds(y, count, rng, groups)


def _group_folds(y: np.ndarray, count: int, rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    names, place = np.unique(groups, return_inverse=True)
    count, classes = min(count, len(names)), int(y.max()) + 1
    pairs, sizes = np.unique(place * classes + y, return_counts=True)
    owner, kind = np.divmod(pairs, classes)
    share, begin = sizes / np.bincount(y)[kind], np.searchsorted(owner, np.arange(len(names) + 1))

    def brought(group: int) -> np.ndarray:
        """(C,) its share of each class; those of all groups at once may be more than fits."""
        own, shares = slice(begin[group], begin[group + 1]), np.zeros(classes)
        shares[kind[own]] = share[own]
        return shares

    filled, chosen = np.zeros((count, classes)), np.empty(len(names), dtype=np.int64)
    whole = np.array([brought(group).sum() for group in range(len(names))])
    order = rng.permutation(len(names))
    for group in order[np.argsort(-whole[order], kind="stable")]:
        shares = brought(group)
        # the fold that has least of what this group brings, then the emptiest
        chosen[group] = np.lexsort((filled.sum(axis=1), filled @ shares))[0]
        filled[chosen[group]] += shares
    table = np.zeros((count, classes))
    np.add.at(table, (chosen[place], y), 1)
    return _first_of(chosen, table, rng)[place]


def _first_of(chosen: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Folds (G,) of groups, numbered anew so that 0, which is held out, is one drawn from those that suit best: the
    others have samples of most classes, it is nearest to 10 to 30 % of the samples, it has samples of most classes.

    Args:
        sizes: (F, C) samples of each class in each fold.
    """
    count, share = len(sizes), sizes.sum(axis=1) / sizes.sum()
    off = np.round(np.maximum(0.1 - share, share - 0.3).clip(0), 1)  # to tenths, lest few samples decide
    taken, absent = (sizes == sizes.sum(axis=0)) & (sizes > 0), sizes == 0
    reasons = np.stack([taken.sum(axis=1), off, absent.sum(axis=1)], axis=1)
    best = min(map(tuple, reasons))
    first = rng.choice([fold for fold in range(count) if tuple(reasons[fold]) == best])
    return (chosen - first) % count
