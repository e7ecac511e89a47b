"""What is wrong with samples, as one pass over them shows: unreadable, empty, constant, copies, of a wrong size."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from labelfree.data.ahead import PIECE, read_ahead
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.dataset import Dataset
from labelfree.data.spread import spread

if TYPE_CHECKING:
    from labelfree.modalities.base import Modality

#: Samples that a quick look takes, of a source in memory and of one that has to be read.
QUICK, QUICK_READ = 2000, 256
#: A signal is nearly constant where it varies this much less than is usual; sizes are wrong beyond this factor.
FAINT, FACTOR = 0.02, 10.0


@dataclass(frozen=True)
class Finding:
    """One kind of fault, and the samples that have it.

    Attributes:
        check: a word or two for it ("copies").
        words: what it means.
        samples: their numbers in the source, ascending.
        groups: those that belong together (copies of one another), where they do.
        reasons: what is to be said of single samples.
        compared: of how many samples these are, where not all that were looked at; 0 for all.
        tally: words for how many are of which kind, where there are several ("3 exactly, 2 nearly").
        fault: whether something is wrong with them; else they are told, and do not count.
    """

    check: str
    words: str
    samples: Sequence[int]
    groups: Sequence[Sequence[int]] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    compared: int = 0
    tally: str = ""
    fault: bool = True


def nearby(dataset: Dataset, indices: Sequence[int]) -> Iterator[Sample | Unreadable]:
    """Samples, taken from memory where they are there, else read ahead."""
    whole = dataset.whole if isinstance(dataset, Cached) else None
    # of samples that are tied or padded only the source knows each by itself
    if whole is None or whole.parts or whole.lengths is not None:
        pieces = (indices[start : start + PIECE] for start in range(0, len(indices), PIECE))
        yield from chain.from_iterable(read_ahead(dataset.read, pieces))
        return
    for index in indices:
        extra = {key: value[index].cpu().numpy() for key, value in whole.extra.items()}
        meta = {key: float(value) for key, value in extra.items() if value.ndim == 0}
        arrays = {key: value for key, value in extra.items() if value.ndim}
        time = None if whole.time is None else whole.time[index].cpu().numpy()
        yield Sample(whole.data[index].cpu().numpy(), index, time=time, meta=meta, extra=arrays)


def digest(sample: Sample) -> bytes:
    """Equal for samples that are alike in all arrays that are kept of them."""
    found = hashlib.blake2b(digest_size=16)
    for array in sample.arrays():
        # a batch keeps some whole numbers wider than their source does
        values = array if array.dtype.kind == "f" else array.astype(np.int64)
        found.update(f"{values.shape}{values.dtype}".encode())
        found.update(np.ascontiguousarray(values).data)
    return found.digest()


class Survey:
    """What has been seen of samples, one after another.

    Arguments:
        signal: whether samples are values in time or space, so that constant ones hold nothing.
        copies: whether samples that are alike are a fault.
        own: what of a sample's data counts for missing values and for emptiness (`Dataset.own_values`); all by default.
        say_length: words for a sample's steps (`Modality.length_words`).

    Attributes:
        rows: numbers of the samples that could be read.
        digests: of these.
        groups: whose each of these is (a patient's, a film's), -1 without one.
    """

    def __init__(
        self,
        signal: bool,
        copies: bool = True,
        own: Callable[[Sample], np.ndarray] = lambda sample: sample.data,
        say_length: Callable[[float], str] = "{:,.0f}".format,
    ) -> None:
        self._signal, self._copies, self._own, self._say_length = signal, copies, own, say_length
        self.rows: list[int] = []
        self.digests: list[bytes] = []
        self.groups: list[int] = []
        self.unreadable: list[Unreadable] = []
        self._empty: list[int] = []
        self._deviations: list[float] = []
        self._shapes: list[tuple[int, ...]] = []
        self._aspects: list[float] = []
        self._missing: np.ndarray | None = None

    def add(self, items: Iterable[Sample | Unreadable]) -> Survey:
        for item in items:
            if isinstance(item, Unreadable):
                self.unreadable.append(item)
                continue
            self.rows.append(item.index)
            self.digests.append(digest(item))
            self.groups.append(item.group)
            self._shapes.append(item.data.shape)
            self._aspects.append(float(item.meta.get("aspect", 1.0)))
            self._look_at(item)
        return self

    def _look_at(self, sample: Sample) -> None:
        values = self._own(sample)
        if values.dtype.kind == "f":
            absent = np.isnan(values)
            if values.size:
                share = np.append(absent.mean(axis=tuple(range(values.ndim - 1))), 1.0)
                alike = self._missing is not None and len(self._missing) == len(share)
                self._missing = self._missing + share if alike else share
            values = values[~absent]
        if not values.size and not sample.parts and not any(array.size for array in sample.extra.values()):
            self._empty.append(sample.index)
        constant = not values.size or values.min() == values.max()
        self._deviations.append(0.0 if constant else float(values.std(dtype=np.float32)) if self._signal else 1.0)

    def missing(self) -> np.ndarray:
        """(F,) share of values that are missing, for each place of the last axis; empty where none can be."""
        if self._missing is None or not self._missing[:-1].any():
            return np.zeros(0)
        return self._missing[:-1] / self._missing[-1]

    def findings(self) -> list[Finding]:
        """All faults that there are, the gravest first."""
        rows = np.array(self.rows, dtype=np.int64)
        deviations, empty = np.array(self._deviations), set(self._empty)
        constant = [int(row) for row in rows[deviations == 0] if row not in empty] if self._signal else []
        usual = float(np.median(deviations[deviations > 0])) if (deviations > 0).any() else 0.0
        faint = rows[(deviations > 0) & (deviations < FAINT * usual)].tolist() if self._signal else []
        bad = {item.index: item.reason for item in self.unreadable}
        found = [
            Finding("unreadable", "cannot be read", sorted(bad), reasons=bad),
            Finding("empty", "hold nothing", sorted(empty)),
            Finding("constant", "have one value throughout", constant),
            Finding("nearly constant", f"vary less than {FAINT:.0%} of what is usual", faint),
            self._wrong_sizes(rows, empty),
        ]
        if self._copies:
            pairs = zip(self.rows, self.digests, strict=True)
            groups = copies([(row, own) for row, own in pairs if row not in empty])
            words = "are exactly alike, as an encoder would get them"
            found.append(Finding("copies", words, sorted(row for group in groups for row in group), groups))
        return [finding for finding in found if finding.samples]

    def _wrong_sizes(self, rows: np.ndarray, empty: Collection[int]) -> Finding:
        reasons: dict[int, str] = {}
        full = [place for place, row in enumerate(rows.tolist()) if row not in empty]
        if full:
            shapes = [self._shapes[place] for place in full]
            lengths = np.array([shape[0] if shape else 1 for shape in shapes], dtype=float)
            usual = max(float(np.median(lengths)), 1.0)
            rest = Counter(shape[1:] for shape in shapes).most_common(1)[0][0]
            aspects = np.array(self._aspects)[full] / np.median(self._aspects)
            for row, shape, length, aspect in zip(rows[full].tolist(), shapes, lengths, aspects, strict=True):
                if shape[1:] != rest:
                    reasons[row] = f"is {'×'.join(map(str, shape))}, usual is {'×'.join(map(str, rest))}"
                elif not 1 / FACTOR <= length / usual <= FACTOR:
                    reasons[row] = f"is {self._say_length(length)} long, usual is {self._say_length(usual)}"
                elif not 2 / FACTOR <= aspect <= FACTOR / 2:
                    reasons[row] = f"is {aspect:.2g} times as wide for its height as is usual"
        return Finding("of unusual size", "are of a size far from the usual", sorted(reasons), reasons=reasons)


def copies(digests: Iterable[tuple[int, bytes]]) -> list[list[int]]:
    """Rows with equal digests, together."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for row, own in digests:
        same[own].append(row)
    return [group for group in same.values() if len(group) > 1]


def quick(dataset: Dataset, modality: Modality) -> tuple[list[Finding], int]:
    """What a look at some samples finds, and how many it looked at; costs little beside a training."""
    limit = QUICK if isinstance(dataset, Cached) and dataset.whole is not None else QUICK_READ
    where = spread(len(dataset), dataset.shards, limit)
    source, _ = dataset.origin()
    survey = Survey(modality.signal, not source.connected, source.own_values, modality.length_words)
    survey.add(nearby(dataset, where))
    return survey.findings(), len(where)
