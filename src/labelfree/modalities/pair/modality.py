"""Pairs: two or more kinds of data tied by row (picture and text, sound and text); a row may lack a side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import PositiveInt

from labelfree import registry
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.encoded import MISSING
from labelfree.data.sources import column_values, hash_of
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, nearest
from labelfree.files import read_json
from labelfree.modalities.base import Budget, Choice, Modality
from labelfree.modalities.pair.sources import Side, find_sides, kind_of, kinds
from labelfree.needs import Need
from labelfree.settings import Settings

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Gives the samples of a side by their places in it.
Reader = Callable[[Sequence[int]], list[Sample | Unreadable]]
#: Samples of a side that stand in where it is missing.
SPARES = 32


class PairSettings(Settings):
    """Settings of pairs. Those of a side are written with its kind: image.size=64, text.length=32."""

    inner: ClassVar[str] = "sides"

    columns: tuple[str, ...] = ()
    """columns of a table that are sides, by commas; empty: files, pictures, sounds and captions that are found"""
    width: PositiveInt = 256
    """dimension of the space that the sides share"""
    sides: Mapping[str, Any] = {}
    """settings of the sides, each with its kind (image.size); image.run=RUN takes settings and tower from a run"""


@dataclass(frozen=True)
class Tied:
    """One side, opened.

    Attributes:
        dataset: its samples.
        rows: (N,) int64 the place of each pair in it, -1 where the side is missing.
        column: of the pairs' table, where it is one.
        given_by: what a person calls the column that it comes from, or that names its files.
    """

    dataset: Dataset
    rows: np.ndarray
    column: str = ""
    given_by: str = ""


class Pairs(Dataset):
    """Samples of several modalities by row. `Sample.data` is (S,) uint8: which sides are there."""

    def __init__(self, sides: Mapping[str, Tied], order: Sequence[str], table: pa.Table | None, words: str) -> None:
        self.sides, self.order, self.words = dict(sides), tuple(order), words
        self._table = table
        whole = [tied for tied in self.sides.values() if np.array_equal(tied.rows, np.arange(len(tied.dataset)))]
        if len(whole) == len(self.sides):
            self.shards = max((tied.dataset.shards for tied in whole), key=len)
            self.reach = min((tied.dataset.reach for tied in whole if tied.dataset.reach), default=0)
        self._numbers = np.arange(len(self))

    def __len__(self) -> int:
        return len(next(iter(self.sides.values())).rows)

    def there(self) -> np.ndarray:
        """(N, S) bool: which sides each row has, as far as is known without reading them."""
        absent = np.full(len(self), -1)
        return np.stack([self.sides[s].rows if s in self.sides else absent for s in self.order], axis=1) >= 0

    def chosen(self, rows: np.ndarray) -> Pairs:
        """Only some rows, counted anew."""
        other = copy.copy(self)
        other.sides = {name: replace(tied, rows=tied.rows[rows]) for name, tied in self.sides.items()}
        other._table = None if self._table is None else self._table.take(pa.array(rows, pa.int64()))
        other._numbers, other.shards = self._numbers[rows], (0,)
        return other

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return self._tied(indices, {name: tied.dataset.read for name, tied in self.sides.items()})

    def shown(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return self._tied(indices, {name: tied.dataset.shown for name, tied in self.sides.items()})

    def _tied(self, indices: Sequence[int], readers: Mapping[str, Reader]) -> list[Sample | Unreadable]:
        """Samples of all sides, each as its reader gives it."""
        rows = np.asarray(indices, dtype=np.int64)
        read = {name: _read_side(self.sides[name], rows, reader) for name, reader in readers.items()}
        return [self._sample(int(i), {name: items[n] for name, items in read.items()}) for n, i in enumerate(rows)]

    def _sample(self, index: int, items: Mapping[str, Sample | Unreadable | None]) -> Sample | Unreadable:
        for name, item in items.items():
            if isinstance(item, Unreadable) and item.reason != MISSING:
                return Unreadable(index, self.name(index), f"{name}: {item.reason}")
        parts = {name: replace(item, index=index) for name, item in items.items() if isinstance(item, Sample)}
        if not parts:
            return self._nothing(index)
        group = next((part.group for part in parts.values() if part.group >= 0), -1)
        there = np.array([name in parts for name in self.order], dtype=np.uint8)
        return Sample(there, index, group, parts=parts)

    def _nothing(self, index: int) -> Unreadable:
        return Unreadable(index, self.name(index), "every side is missing")

    def tied(self) -> Pairs:
        """The rows with two sides or more. Those without any are left out as unreadable."""
        sides = self.there().sum(axis=1)
        if (sides > 1).all():
            return self
        other = self.chosen(np.flatnonzero(sides > 1))
        other.unreadable = [self._nothing(row) for row in np.flatnonzero(sides == 0).tolist()]
        return other

    def describe(self) -> Description:
        there = self.there()
        facts = {"source": self.words}
        given = {name: tied.given_by for name, tied in self.sides.items()}
        if any(given.values()):
            facts["sides"] = ", ".join(f"{name} = {column}" if column else name for name, column in given.items())
        for number, name in enumerate(self.order):
            count = int(there[:, number].sum())
            facts[name] = f"{count:,} rows" if count < len(self) else "every row"
        incomplete = int((~there.all(axis=1)).sum())
        facts["a side missing"] = f"{incomplete:,} rows"
        numbers = {"sides": float(len(self.order)), "incomplete": float(incomplete)}
        return Description("pair", len(self), facts, numbers)

    def fingerprint(self) -> str:
        return hash_of(*(part for tied in self.sides.values() for part in (tied.dataset.fingerprint(), tied.rows)))

    def name(self, index: int) -> str:
        """The name of the first side that has one of its own, such as a file's."""
        found = [t.dataset.name(int(t.rows[index])) for t in self.sides.values() if t.rows[index] >= 0]
        return next((name for name in found if not name.startswith("row ")), f"row {self._numbers[index]}")

    def columns(self) -> Sequence[str]:
        own = [] if self._table is None else self._table.column_names
        beside = [name for tied in self.sides.values() for name in tied.dataset.columns()]
        return [name for name in dict.fromkeys([*own, *beside]) if name not in self._taken]

    @property
    def _taken(self) -> set[str]:
        return {tied.column for tied in self.sides.values()}

    def column(self, name: str) -> np.ndarray:
        if name in self._taken:
            raise LabelfreeError(
                f"Column '{name}' is a side, which the encoder sees, so it cannot be a label.", "Name another column."
            )
        if self._table is not None and name in self._table.column_names:
            return column_values(self._table, name)
        for tied in self.sides.values():
            if name in tied.dataset.columns():
                values = tied.dataset.column(name)[tied.rows]
                return np.asarray(np.where(tied.rows >= 0, values.astype(object), None))
        return super().column(name)


def _of_items(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
    """(M,) the sample of each item of a side: of those that it is cut into (a film into clips) the middle one, -1 where
    there is none.

    Args:
        names: of the items, where they are files of a folder: not all of them may have been read.
    """
    if dataset.cut_from is None and len(dataset) == (len(names) or len(dataset)):
        return np.arange(len(dataset))
    if names:
        number = {name: item for item, name in enumerate(names)}
        called = [dataset.name(index) for index in range(len(dataset))]  # a piece has what it is of behind a comma
        owner = np.array([number.get(name, number.get(name.rpartition(", ")[0], -1)) for name in called], dtype=int)
    else:
        assert dataset.cut_from is not None
        owner = dataset.cut_from
    pieces = np.flatnonzero(owner >= 0)
    pieces = pieces[np.argsort(owner[pieces], kind="stable")]
    counts = np.bincount(owner[pieces], minlength=len(names) or dataset.source_count())
    some, middle = counts > 0, np.cumsum(counts) - counts + counts // 2
    found = np.full(len(counts), -1, dtype=np.int64)
    found[some] = pieces[middle[some]]
    return found


def _read_side(tied: Tied, rows: np.ndarray, reader: Reader) -> list[Sample | Unreadable | None]:
    """The samples of one side, None where it is missing."""
    places = tied.rows[rows]
    there = iter(reader(places[places >= 0].tolist()))
    return [next(there) if place >= 0 else None for place in places]


class OneSide(Dataset):
    """One side of all rows; where it is missing, a sample that is there stands in."""

    def __init__(self, pairs: Pairs, rows: np.ndarray, side: str) -> None:
        tied = pairs.sides[side]
        self.there = tied.rows[rows] >= 0
        self._dataset = tied.dataset
        known = tied.rows[tied.rows >= 0]
        self._rows = np.where(self.there, tied.rows[rows], known[0] if len(known) else 0)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        items = self._dataset.read(self._rows[list(indices)].tolist())
        return [replace(item, index=int(i)) for i, item in zip(indices, items, strict=True)]

    def describe(self) -> Description:
        return replace(self._dataset.describe(), count=len(self))

    def fingerprint(self) -> str:
        return hash_of(self._dataset.fingerprint(), self._rows)

    def origin(self) -> tuple[Dataset, np.ndarray]:
        source, rows = self._dataset.origin()
        return source, rows[self._rows]


class Pair(Modality):
    """Pairs. A raw batch and a view have `data` (B, S) uint8, which sides are there, and a batch of each side in
    `parts`; where a row lacks a side, another row's stands in, to be left out of account.
    """

    name = "pair"
    settings_class = PairSettings
    offers = frozenset({Need.VIEWS, Need.PAIR})

    def __init__(self, settings: PairSettings | None = None) -> None:
        super().__init__(settings)
        self.sides: dict[str, Modality] = {}
        self.runs: dict[str, tuple[str, Path]] = {}
        self._found: dict[str, Description] = {}
        self._spare: dict[str, list[Sample]] = {}
        self._learnt = False

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        """A dictionary of kinds; encoded data, or files, with captions. What may be a label is never guessed a side."""
        if isinstance(source, Mapping):
            named = [name for name in source if isinstance(name, str) and kind_of(name) in kinds()]
            return (0.99, "a dictionary of " + " and ".join(named)) if len(named) > 1 else (0.0, "")
        if not isinstance(source, str | Path):
            return 0.0, ""
        try:
            found = find_sides(Path(source).expanduser(), {}, glance=True)
        except LabelfreeError:
            return 0.0, ""
        return 0.97, f"{found.words}: {' and '.join(found.sides)}"

    def open(self, source: Any) -> Pairs:
        fitted = tuple(self.sides) if self._learnt else ()
        wanted = dict.fromkeys(self.settings.columns, "") if not self._learnt else {}
        found = find_sides(source, wanted, fitted)
        if not self._learnt:
            self.sides = {name: self._new_side(name, side) for name, side in found.sides.items()}
        opened = {name: self._open_side(name, side) for name, side in found.sides.items()}
        counts = {name: len(tied.rows) for name, tied in opened.items()}
        if len(set(counts.values())) > 1:
            has = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            raise LabelfreeError(f"Sides are tied by row, but they differ in length: {has}.", "Give as many of each.")
        pairs = Pairs(opened, tuple(self.sides), found.table, found.words)
        self._check_sides(pairs)
        self._found = {name: tied.dataset.describe() for name, tied in opened.items()}
        if self._learnt:
            self._keep_spares(pairs)
        return pairs

    def _keep_spares(self, pairs: Pairs) -> None:
        """Keep a few samples of each side all over the source, to stand in where a row lacks it."""
        for name, tied in pairs.sides.items():
            known = tied.rows[tied.rows >= 0]
            some = np.unique(known[spaced(len(known), SPARES)])
            self._spare[name] = [item for item in tied.dataset.read(some.tolist()) if isinstance(item, Sample)]

    def _check_sides(self, pairs: Pairs) -> None:
        there = pairs.there()
        empty = [name for name, column in zip(pairs.order, there.T, strict=True) if not column.any()]
        if not self._learnt and empty:
            raise LabelfreeError(f"Side '{empty[0]}' is missing in every row.", "Name other columns.")
        if not self._learnt and not (there.sum(axis=1) > 1).any():
            raise LabelfreeError("No row has two sides: there is nothing to tie.", "Check how the rows are matched.")

    def _new_side(self, name: str, side: Side) -> Modality:
        """The modality of a side, with the settings that the user gave it, or those of the run it comes from."""
        cls = registry.find("side", {kind: registry.modalities()[kind] for kind in kinds()}, side.kind)
        own = self._settings_of(side.kind)
        state = None
        if run := own.pop("run", None):
            own, state = self._from_run(name, side.kind, Path(run), own)
        if side.column and "column" in cls.settings_class.model_fields:
            own = {**own, "column": side.column}
        modality = cls(cls.settings_class.read(own, side.kind))
        if state is not None:
            modality.load_state(state)
        return modality

    def _settings_of(self, kind: str) -> dict[str, Any]:
        found = {}
        for key, value in self.settings.sides.items():
            prefix, _, rest = key.partition(".")
            if prefix not in kinds() or not rest:
                raise LabelfreeError(f"There is no kind of side '{prefix}' for '{key}'.", nearest(prefix, kinds()))
            if prefix == kind:
                found[rest] = value
        return found

    def _from_run(self, name: str, kind: str, folder: Path, own: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        config = read_json(folder / "encoder" / "config.json")
        made = config["modality"]
        if made["name"] != kind:
            raise LabelfreeError(f"The run '{folder}' is of {made['name']} data, not of {kind}.", "Name another run.")
        self.runs[name] = (config["encoder"]["spec"], folder)
        return {**made["settings"], **own}, made["state"]

    def _open_side(self, name: str, side: Side) -> Tied:
        modality = self.sides[name]
        own = modality.settings
        if self._learnt and side.column and getattr(own, "column", side.column) != side.column:
            modality = type(modality)(own.model_copy(update={"column": side.column}))
            modality.load_state(self.sides[name].state())
        dataset = modality.open(side.source)
        place = _of_items(dataset, side.names)
        rows = place if side.rows is None else np.where(side.rows >= 0, place[side.rows], -1)
        column = side.column or (side.source.column_names[0] if isinstance(side.source, pa.Table) else "")
        return Tied(dataset, rows, column, side.given_by or column)

    def training_set(self, dataset: Dataset, needs: frozenset[Need] = frozenset()) -> Dataset:
        """Rows with two sides or more, where it is the ties that are learnt from."""
        if not isinstance(dataset, Pairs) or Need.PAIR not in needs:
            return dataset
        return dataset.tied()

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        """CLIP on towers; each side and its tower as its own modality would choose them."""
        budget = replace(budget, views=bool(budget.views))  # CLIP, which is chosen, sees each side once, as a whole
        specs: list[str] = []
        sides: dict[str, Any] = {}
        for name, modality in self.sides.items():
            offered = {choice.key: choice for choice in modality.defaults(self._found[name], budget)}
            specs.append(self.runs[name][0] if name in self.runs else str(offered["encoder"].value))
            known = type(modality).settings_class.model_fields
            own = {f"{kind_of(name)}.{key}": c.value for key, c in offered.items() if key in known}
            sides |= {} if name in self.runs else own
        return [
            Choice("method", "clip", "the sides of a row find each other among those of other rows"),
            Choice("encoder", "towers:" + "+".join(specs), "what each side would choose by itself"),
            Choice("batch_size", max(2, min(256, found.count // 8)), "an eighth of the rows, at most 256"),
            *([Choice("sides", sides, "what each side would choose by itself")] if sides else []),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        if not isinstance(dataset, Pairs):
            raise LabelfreeError("Statistics are learnt from pairs.", "Open the source with the pair modality.")
        for name, modality in self.sides.items():
            if name not in self.runs:
                modality.fit(dataset.sides[name].dataset)
        self._learnt = True
        self._keep_spares(dataset)

    def state(self) -> dict[str, Any]:
        return {
            name: {"settings": modality.settings.model_dump(mode="json"), "state": modality.state()}
            for name, modality in self.sides.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.sides, self.runs = {}, {}
        for name, own in state.items():
            cls = registry.find("modality", registry.modalities(), kind_of(name))
            self.sides[name] = cls(cls.settings_class.read(own["settings"], cls.name))
            self.sides[name].load_state(own["state"])
        self._learnt = True

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        parts = {}
        for name, modality in self.sides.items():
            # who stands in is a matter of the row, not of the batch: several processes then see what one sees
            own = [sample.parts.get(name) or self._stand_in(name, sample.index) for sample in samples]
            if all(own):
                parts[name] = modality.collate(
                    [replace(p, index=s.index) for p, s in zip(own, samples, strict=True) if p]
                )
        return Batch(
            torch.from_numpy(np.stack([sample.data for sample in samples])),
            torch.tensor([sample.index for sample in samples]),
            group=torch.tensor([sample.group for sample in samples]),
            parts=parts,
        )

    def _stand_in(self, name: str, index: int) -> Sample | None:
        spares = self._spare.get(name)
        return spares[index % len(spares)] if spares else None

    def prepare(self, batch: Batch) -> Batch:
        return batch.with_(parts={name: self.sides[name].prepare(part) for name, part in self._parts(batch)})

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        parts = {name: self.sides[name].view(part, draw.view(name), policy) for name, part in self._parts(batch)}
        return batch.with_(parts=parts, draw=draw)

    def _parts(self, batch: Batch) -> list[tuple[str, Batch]]:
        return [(name, batch.parts[name]) for name in self.sides if name in batch.parts]

    # ---- encoders

    def transformer(self, size: str, causal: bool) -> Encoder:
        """A tower for each side: its own shared transformer."""
        from labelfree.encoders.towers import Towers

        return Towers.build("+".join(f"transformer:{size}" for _ in self.sides), self, causal)

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        shown = [m.show(sample.parts[name]) for name, m in self.sides.items() if name in sample.parts]
        return f'<div class="pair">{" ".join(shown)}</div>'

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """The raw features of all sides beside each other, zeros where a side is missing."""
        from scipy import sparse

        columns: list[list[Any]] = [[] for _ in range(1 + len(others))]
        for name, modality in self.sides.items():
            sides = [self._one_side(dataset, name) for dataset in (train, *others)]
            if sides[0] is None or any(side is None for side in sides):
                continue
            found = modality.raw_features(sides[0], sides[1:])  # type: ignore[arg-type]
            for place, (side, features) in enumerate(zip(sides, found, strict=True)):
                there = sparse.diags_array(side.there.astype(np.float32))  # type: ignore[union-attr]
                columns[place].append(there @ features)
        if any(sparse.issparse(part) for part in columns[0]):
            return [sparse.csr_array(sparse.hstack([sparse.csr_array(p) for p in parts])) for parts in columns]
        return [np.hstack(parts) for parts in columns]

    @staticmethod
    def _one_side(dataset: Dataset, name: str) -> OneSide | None:
        pairs, rows = dataset.origin()
        assert isinstance(pairs, Pairs)
        return OneSide(pairs, rows, name) if name in pairs.sides else None
