"""Tables: rows of numbers, categories, dates and short texts, with values missing and categories never seen before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import PositiveInt
from torch import Tensor

from labelfree.data import columns as col
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description, no_column, seen_by_encoder
from labelfree.data.delimited import nameless
from labelfree.data.draw import Draw
from labelfree.data.on_device import on_device
from labelfree.data.sources import HEAD_ROWS, TABLES, column_values, read_head, share_of
from labelfree.data.tables import DATABASES, Rows, as_table, open_rows
from labelfree.errors import LabelfreeError
from labelfree.files import is_address
from labelfree.modalities.base import Budget, Choice, Modality, token_mask
from labelfree.modalities.table.columns import (
    Column,
    Found,
    Wanted,
    encode,
    find_columns,
    require,
    typed_columns,
    words,
)
from labelfree.modalities.table.fields import Fields, TableStem, Typed
from labelfree.needs import Need
from labelfree.settings import Names, Settings, Share

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Values that are shown of a row, and columns that are named.
SHOWN, NAMED = 14, 12
#: Rows so far apart are less alike in series, by so much more than neighbours are.
FAR, FADING = 5, 1.5
#: One column for each category, beyond so many only where memory is spared by a sparse matrix.
DENSE = 512


class TableSettings(Settings):
    """Which columns are used, as what, and how rows are corrupted."""

    query: str = ""
    """SQL query for a database; empty: all rows of its only table"""
    columns: Names = ()
    """columns to use, by commas; empty: all that carry information"""
    exclude: Names = ()
    """columns to leave out, such as the label, by commas"""
    numbers: Names = ()
    """columns that are numbers, whatever they look like"""
    categories: Names = ()
    """columns that are categories, whatever they look like (codes, years)"""
    group: str = ""
    """column that says whose row it is (customer, device)"""
    most_values: PositiveInt = 256
    """how many of a column's categories are kept apart, the most frequent ones; all others count as one"""
    corrupt: Share = 0.3
    """views: share of the columns whose values are drawn from all rows, of each view (SCARF: .6 of one of the two)"""
    swap: Share = 0.0
    """masks: share of hidden values that show another row's value instead of nothing (VIME: all)"""


class TableDataset(Dataset):
    """Rows, encoded.

    Args:
        rows: where they are from.
        fields: of the columns that the encoder sees.
        group: the column of groups, or "".
        found: what was found out about the columns when they were typed, if they were.
    """

    def __init__(self, rows: Rows, fields: Fields, group: str = "", found: Found | None = None) -> None:
        self.rows, self.fields, self.found = rows, fields, found
        self.values = _encoded(rows, fields)
        rows.let_go()
        self.unreadable = [Unreadable(row, f"row {row}", why) for row, why in rows.ragged.items()]
        self.value_names = [field.name for field in fields.all]
        self.group = np.full(rows.count, -1, dtype=np.int64) if not group else _group_numbers(rows, group)
        self._group_name = group

    def __len__(self) -> int:
        return self.rows.count

    def source_count(self) -> int:
        return len(self)  # rows that cannot be read are among them, empty

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return [Sample(self.values[index], int(index), int(self.group[index])) for index in indices]

    def collated(self) -> Batch:
        return Batch(torch.from_numpy(self.values), torch.arange(len(self)), group=torch.from_numpy(self.group))

    def columns(self) -> Sequence[str]:
        """Those that the encoder does not see."""
        seen = {column.name for column in self.fields.columns}
        return [name for name in self.rows.names if name not in seen]

    def column(self, name: str) -> np.ndarray:
        if name not in self.rows.names:
            raise no_column(name, self.rows.names)
        if name not in self.columns():
            raise seen_by_encoder(name, "a feature")
        return column_values(self.rows.read([name]), name)

    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint}-{'-'.join(field.name for field in self.fields.all)}"

    def describe(self) -> Description:
        columns = self.fields.columns
        facts = {"columns": f"{len(columns)} of {len(self.rows.names)}"}
        facts["columns"] += "; the first row holds no names" if nameless(self.rows.names) else ""
        for kind in ("number", "boolean", "category", "date", "text"):
            if own := [column for column in columns if column.kind == kind]:
                facts[kind] = _listed([_with_count(column) for column in own])
        missing = float(np.isnan(self.values).mean())
        if missing:
            facts["missing"] = f"{missing:.1%} of the values"
        if empty := int(np.isnan(self.values).all(axis=1).sum()):
            facts["empty rows"] = f"{empty:,}"
        if self.unreadable:
            facts["unreadable"] = f"{len(self.unreadable):,}"
        if self._group_name:
            facts["groups"] = f"{len(np.unique(self.group)):,} ({self._group_name})"
        if self.found:
            left = {name: why for name, why in self.found.left_out.items() if name != self._group_name}
            for key, about in (("noted", self.found.notes), ("left out", left)):
                if about:
                    facts[key] = _listed([f"{name}: {why}" for name, why in about.items()])
        numbers = {"columns": len(columns), "fields": len(self.fields), "missing": missing}
        return Description("table", len(self), facts, {key: float(value) for key, value in numbers.items()})


def _with_count(column: Column) -> str:
    return f"{column.name} ({len(column.values)})" if column.kind == "category" else column.name


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _encoded(rows: Rows, fields: Fields) -> np.ndarray:
    """(R, F) float32."""
    require(rows, [column.name for column in fields.columns], "The trained encoder")
    values = np.empty((rows.count, len(fields)), dtype=np.float32)
    own = {column.name: column for column in fields.columns}
    places = np.argsort(fields.order)  # where each of the columns' own fields went
    start = 0
    for name, column in rows.columns(list(own)):
        found = encode(own[name], column)
        values[:, places[start : start + found.shape[1]]] = found
        start += found.shape[1]
    return values


def _group_numbers(rows: Rows, name: str) -> np.ndarray:
    """(R,) int64 number of each row's group, -1 without one."""
    require(rows, [name], "group")
    return col.group_numbers(np.array(words(rows.read([name]).column(name)).to_pylist(), dtype=object))


class Table(Modality):
    """Rows of typed columns. A token is a field; a missing value is NaN everywhere, a category a code from 1, and 0 is
    any category that training has not seen.
    """

    name = "table"
    settings_class = TableSettings
    offers = frozenset({Need.VIEWS, Need.TARGETS, Need.MASK})
    classical = ("linear", "boosting")
    near_copies = False

    def __init__(self, settings: TableSettings | None = None) -> None:
        super().__init__(settings)
        self._take(Fields(()))

    def _take(self, fields: Fields) -> None:
        self.fields = fields
        self._typed = Typed(fields) if len(fields) else None

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if is_address(source):
            return 0.9, "the address of a database"
        if isinstance(source, str | Path):
            return _recognise_path(Path(source).expanduser())
        try:
            if isinstance(source, np.ndarray) or not hasattr(source, "__len__") or isinstance(source, Mapping):
                return 0.0, ""
            return _recognise_rows(as_table(source).slice(0, HEAD_ROWS))
        except LabelfreeError:
            return 0.0, ""

    def open(self, source: Any) -> TableDataset:
        own = self.settings
        if isinstance(source, TableDataset):
            return source
        rows = source if isinstance(source, Rows) else open_rows(source, own.query)
        if self.fields.marginals.numel():
            return TableDataset(rows, self.fields, own.group if own.group in rows.names else "")
        if own.group and own.group not in rows.names:
            raise no_column(own.group, rows.names)
        exclude = (*own.exclude, *((own.group,) if own.group else ()))
        found = find_columns(rows, Wanted(own.columns, exclude, own.numbers, own.categories, own.most_values))
        return TableDataset(rows, Fields(found.columns), own.group, found)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        large = found.count >= 100_000
        return [
            Choice("method", "scarf", "a row and a corrupted copy of it agree: nothing is assumed about the columns"),
            Choice("encoder", "mlp", "one pass over a row without attention between columns: the fastest"),
            Choice("batch_size", 512 if large else 128, "many rows" if large else "as published"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        source, _ = dataset.origin()
        fields = source.fields if isinstance(source, TableDataset) else self.fields
        fields.learn(_values(dataset))
        self._take(fields)

    def state(self) -> dict[str, Any]:
        return self.fields.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._take(Fields.of_state(state))

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch(
            data=torch.from_numpy(np.stack([sample.data for sample in samples])),
            index=torch.tensor([sample.index for sample in samples]),
            group=torch.tensor([sample.group for sample in samples]),
        )

    def prepare(self, batch: Batch) -> Batch:
        return batch.with_(data=self.fields.normalise(batch.data))

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        """A table knows no change that surely keeps a row's meaning: "light" is the row as it is."""
        view = self.prepare(batch).with_(draw=draw)
        if policy in ("light", "none") or not self.settings.corrupt:
            return view
        return view.with_(data=torch.where(self._corrupted(view, draw), self._donors(view, draw), view.data))

    def _corrupted(self, view: Batch, draw: Draw) -> Tensor:
        """(B, F) bool: the same number of columns in each row, drawn evenly (Bahri et al. 2022, SCARF, §3)."""
        columns = len(self.fields.columns)
        count = round(self.settings.corrupt * columns)
        chosen = draw.permutation("columns", columns) < count
        return chosen[:, on_device(self.fields.column, chosen.device)]

    def _donors(self, view: Batch, draw: Draw) -> Tensor:
        """(B, F) values drawn from each column's marginal in the training data; those of one column go together."""
        marginals, column = (on_device(of, view.data.device) for of in (self.fields.marginals, self.fields.column))
        rank = draw.integers("donors", marginals.shape[1], len(self.fields.columns))[:, column]
        return marginals.T.gather(0, rank)

    # ---- tokens

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.encoders.trunk import Trunk

        shape = SIZES[size]
        return Trunk(TableStem(self.fields, shape.dim), shape.dim, shape.depth, shape.heads, causal, dropout=0.1)

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Whole columns, but for the last, of which some fields may stay; missing values are hidden last."""
        column = on_device(self.fields.column, batch.data.device)
        score = draw.uniform("columns", len(self.fields.columns))[:, column]
        score = score + 1e-4 * draw.uniform("fields", len(self.fields)) + 2.0 * batch.data.isnan()
        return token_mask(score, ratio)

    def hide(self, batch: Batch, mask: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        if not self.settings.swap:
            return batch, mask
        swapped = mask & draw.bernoulli("swap", self.settings.swap, mask.shape[1])
        return batch.with_(data=torch.where(swapped, self._donors(batch, draw), batch.data)), mask & ~swapped

    def targets(self, batch: Batch) -> Tensor:
        """(B, F, 2): the field's number, and its value."""
        field = torch.arange(len(self.fields), device=batch.data.device, dtype=batch.data.dtype)
        return torch.stack([field.expand_as(batch.data), batch.data], dim=-1)

    @property
    def target_dim(self) -> int:
        assert self._typed is not None
        return self._typed.width

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        assert self._typed is not None
        return self._typed.loss(prediction, target)

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        x = view.data.float()
        if prediction is not None:
            assert self._typed is not None
            found = self.fields.within(self._typed.guesses(prediction.float()))
            x = found if mask is None else torch.where(mask, found, x)
        rows = self.fields.restore(x).cpu().numpy()
        return [Sample(row, int(index)) for row, index in zip(rows, view.index, strict=True)]

    # ---- for people, and for baselines

    def row(self, sample: Sample) -> dict[str, str]:
        fields = self.fields
        shown: dict[str, str] = {}
        for place in np.argsort(fields.order):
            field, column = fields.all[place], fields.columns[fields.column[place]]
            if field.column not in shown and column.kind != "text":
                shown[field.column] = _said(column, float(sample.data[place]))
        return shown

    def show(self, sample: Sample) -> str:
        shown = self.row(sample)
        rows = "".join(
            f'<tr><td style="color:#888">{escape(name)}</td><td>{escape(value)}</td></tr>'
            for name, value in list(shown.items())[:SHOWN]
        )
        more = f"<tr><td>… {len(shown) - SHOWN} more</td></tr>" if len(shown) > SHOWN else ""
        return f'<table style="font-size:11px;line-height:1.3;text-align:left">{rows}{more}</table>'

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Numbers normalised as for the encoder, one column for each category, and one where values are missing."""
        every = [_values(part) for part in (train, *others)]
        gaps = np.flatnonzero(np.isnan(every[0]).any(axis=0))
        return [self._raw(rows, gaps) for rows in every]

    def _raw(self, rows: np.ndarray, gaps: np.ndarray) -> np.ndarray | Any:
        from scipy import sparse

        count, numbers = len(rows), self.fields.numbers
        plain = np.concatenate([self.fields.normalise(torch.from_numpy(rows)).numpy()[:, :numbers],
                                np.isnan(rows[:, gaps])], axis=1)  # fmt: skip
        plain = np.nan_to_num(plain).astype(np.float32)
        first = np.cumsum([0, *self.fields.sizes])
        known = ~np.isnan(rows[:, numbers:])
        places = (np.nan_to_num(rows[:, numbers:]).astype(np.int64) + first[:-1])[known]
        shape = (count, int(first[-1]))
        one_hot = sparse.csr_matrix((np.ones(len(places), np.float32), (np.nonzero(known)[0], places)), shape=shape)
        if shape[1] > DENSE:
            return sparse.hstack([sparse.csr_matrix(plain), one_hot]).tocsr()
        return np.concatenate([plain, one_hot.toarray()], axis=1)


def _values(dataset: Dataset) -> np.ndarray:
    """(N, F) raw rows of a dataset, in memory or not."""
    batch = dataset.collated()
    if batch is not None:
        return batch.data.numpy()
    return np.stack([item.data for item in dataset.read(range(len(dataset))) if isinstance(item, Sample)])


def _said(column: Column, value: float) -> str:
    """A raw value of a column's first field as a person writes it."""
    if np.isnan(value):
        return "–"
    if column.kind == "date":
        return str(np.datetime64(int(np.floor(value)), "D"))
    if column.values:
        return column.values[int(value) - 1] if value >= 1 else "(another)"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


# ---- what a source is


def _recognise_path(path: Path) -> tuple[float, str]:
    if path.suffix.lower() in DATABASES and path.is_file():
        return 0.9, "a database file"
    try:
        if path.is_dir():
            tables, share = share_of(path, TABLES)
            sure, words = _recognise_rows(read_head(tables[0])) if tables else (0.0, "")
            return sure * share, words if len(tables) == 1 else f"{len(tables):,} tables, the first of them {words}"
        if path.is_file() and path.suffix.lower() in TABLES:
            return _recognise_rows(read_head(path))
    except LabelfreeError:
        pass
    return 0.0, ""


def _recognise_rows(table: pa.Table) -> tuple[float, str]:
    """Rows of a table are no more alike because they are neighbours, nor are its columns; those of series are."""
    try:
        found = typed_columns(open_rows(table), Wanted())
    except LabelfreeError:
        return 0.0, ""
    kinds = [column.kind for column in found.columns]
    if len(kinds) < 2 and not (kinds == ["number"] and _has_identifier(table, found)):
        return 0.0, ""
    count = kinds.count("number")
    said = f"a table of {len(table.column_names)} columns ({count} number{'s' * (count != 1)}"
    said += f", {len(found.left_out)} left out)" if found.left_out else ")"
    numbers = [column.name for column in found.columns if column.kind == "number"]
    wide, along, fades = _alikeness(table, numbers)
    if kinds.count("text") * 2 >= len(kinds):
        # long texts are what is learnt; short ones beside numbers, rather than left out as no channel of a series
        return (0.58 if numbers and along < 0.4 else 0.3), said
    if col.looks_wide(table) and wide >= 0.2:
        return 0.2, said
    # times, and what stays as it is for many rows (a device, a state), come with series
    beside = [column for column in found.columns if column.kind == "date" or _lasts(table, column.name)]
    timed = any(column.kind == "date" or col.plain(column.name) in col.TIME_NAMES for column in found.columns)
    if along >= 0.4 and (timed or fades) and len(numbers) * 2 >= len(kinds) - len(beside):
        return 0.3, said
    said += ", neighbouring rows alike" if along >= 0.4 else ", neighbouring rows unrelated"
    return (0.92 if col.looks_wide(table) else 0.85), said


def _has_identifier(table: pa.Table, found: Found) -> bool:
    """Whether words tell nearly all rows apart and are no times: a name, or a category of very many values."""
    left = [name for name, reason in found.left_out.items() if reason.startswith("identifier")]
    return any(col.is_words(table.schema.field(n).type) and col.plain(n) not in col.TIME_NAMES for n in left)


def _lasts(table: pa.Table, name: str) -> bool:
    """Whether words, or true and false, are mostly those of the row before."""
    kind = table.schema.field(name).type
    if not (col.is_words(kind) or pa.types.is_boolean(kind)) or len(table) < 2:
        return False
    values = np.array(table.column(name).to_pylist(), dtype=object)
    return bool((values[1:] == values[:-1]).mean() > 0.8)


def _alikeness(table: pa.Table, names: Sequence[str]) -> tuple[float, float, bool]:
    """Median correlation of neighbouring columns, and of neighbouring rows within a column; 0 where there is none.

    And whether rows farther away are less alike: those of a table that is sorted by class are as much so.
    """
    if len(names) == 0 or len(table) < 2 * FAR:
        return 0.0, 0.0, False
    x = np.stack([encode(Column(name, "number"), table.column(name))[:, 0] for name in names], axis=1)
    x = np.where(np.isnan(x), np.nanmedian(x, axis=0), x).astype(np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    columns = np.abs((x[:, 1:] * x[:, :-1]).mean(axis=0))
    moving = np.abs(np.diff(x, axis=0)).max(axis=0) > 0
    near, far = (np.abs((x[lag:] * x[:-lag]).mean(axis=0))[moving] for lag in (1, FAR))
    fades = len(near) > 0 and float(np.median((1 - far) / (1 - near).clip(1e-9))) >= FADING
    return float(np.median(columns)) if len(columns) else 0.0, float(np.median(near)) if len(near) else 0.0, fades
