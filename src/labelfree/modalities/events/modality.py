"""Events: an evolving graph — payments, messages, connections: who did something with whom, when, and what."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.columns import TINY
from labelfree.data.dataset import Dataset, Description, no_column, seen_by_encoder
from labelfree.data.draw import Draw
from labelfree.data.events import (
    Histories,
    Log,
    LogOptions,
    RecentEvents,
    around,
    as_table,
    find_columns,
    moment,
    read_log,
)
from labelfree.data.on_device import on_device
from labelfree.data.sources import ARRAYS, TABLES, read_head
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import value_error
from labelfree.modalities.base import Budget, Choice, Modality, Transformation, span_mask
from labelfree.modalities.events import views
from labelfree.needs import Need
from labelfree.settings import Names, Settings

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Events that the statistics are taken from, spread evenly over the source.
_FITTED = 1 << 16


class EventSettings(Settings):
    """How events are read and seen."""

    source_column: str = ""
    """column of the node that acts (sender, user); empty: found by its name"""
    target_column: str = ""
    """column of the node acted upon (receiver, item); empty: found by its name"""
    time: str = ""
    """column of times; empty: found by its type or name"""
    kinds: Literal["auto", "one", "two"] = "auto"
    """whether equal names on both sides are one node, or two of different kinds (user 7, item 7); auto: by the names"""
    columns: Names = ()
    """columns that are features of an event, by commas; empty: all numbers and categories that look like it"""
    exclude: Names = ()
    """columns that are no features, such as the label, by commas"""
    recent: PositiveInt = 8
    """how many recent events of each end come with an event"""
    span: Annotated[float, Field(gt=0, le=1)] = 0.5
    """views: least share of each history that a view keeps, as one stretch of it"""
    masking: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """views: share of events whose features are hidden"""


class EventDataset(Dataset):
    """The events of a log, each with the recent histories of its ends."""

    connected = True

    def __init__(self, log: Log, recent: int) -> None:
        self.log, self.recent = log, recent
        self.unreadable, self.value_names = log.unreadable, log.channels
        self._histories = Histories(log.ends)

    def __len__(self) -> int:
        return len(self.log)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        event = np.asarray(indices, dtype=np.int64)
        past = [self._histories.recent(self.log.ends[event, end], event, self.recent) for end in (0, 1)]
        number = np.concatenate([*past, event[:, None]], axis=1)
        data, time, nodes = around(self.log, number)
        return [
            Sample(data[row], int(index), time=time[row], extra={"nodes": nodes[row], "number": number[row]})
            for row, index in enumerate(event)
        ]

    def own_values(self, sample: Sample) -> np.ndarray:
        """Of the event itself, which comes last: histories hold other events, and gaps where there were fewer."""
        return sample.data[-1:]

    def name(self, index: int) -> str:
        source, target = (self.log.nodes[node] for node in self.log.ends[index])
        target = target[0] if isinstance(target, tuple) else target
        return f"row {self.log.rows[index]}: {source} → {target} at {moment(self.log.time[index])}"

    def columns(self) -> Sequence[str]:
        return list(self.log.columns)

    def column(self, name: str) -> np.ndarray:
        if name not in self.log.columns:
            raise no_column(name, self.columns())
        if name in self.log.channels or any(channel.startswith(f"{name}=") for channel in self.log.channels):
            raise seen_by_encoder(name, "a feature of the events")
        return self.log.columns[name]

    def fingerprint(self) -> str:
        return f"{self.log.fingerprint}-{self.recent}"

    def describe(self) -> Description:
        facts = dict(self.log.facts)
        if self.unreadable:
            facts["unreadable"] = f"{len(self.unreadable):,}"
        numbers = {"nodes": float(len(self.log.nodes)), "channels": float(len(self.log.channels))}
        return Description("events", len(self), facts, numbers)


class Events(Modality):
    """Timed edges of a graph that evolves. A sample is an event with the recent histories of its two ends; each of
    these events is a token, the sample's own the last.
    """

    name = "events"
    settings_class = EventSettings
    offers = frozenset({Need.VIEWS, Need.TARGETS, Need.MASK, Need.ORDER, Need.TRANSFORMATIONS})
    shuffled = False
    classical = ("linear", "boosting")

    def __init__(self, settings: EventSettings | None = None) -> None:
        super().__init__(settings)
        self._channels: tuple[str, ...] | None = None
        self._nodes = 0
        self._gap = 1.0
        self._median = torch.zeros(0)
        self._scale = torch.ones(0)

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if isinstance(source, str | Path):
            path = Path(source).expanduser()
            if not path.is_file() or path.suffix.lower() not in (*TABLES, *ARRAYS):
                return 0.0, ""
            if path.suffix.lower() in TABLES:
                return cls._recognise_table(lambda: read_head(path))
        return cls._recognise_table(lambda: as_table(source)[0])

    @staticmethod
    def _recognise_table(read: Callable[[], pa.Table]) -> tuple[float, str]:
        try:
            found = find_columns(read(), LogOptions())
        except (LabelfreeError, ValueError, TypeError, pa.ArrowException):
            return 0.0, ""
        if found is None:
            return 0.0, ""
        return 0.95, f"a table of events: '{found[0]}' holds times, '{found[1]}' and '{found[2]}' nodes"

    def log(self, source: Any) -> Log:
        own = self.settings
        return read_log(
            source,
            LogOptions(
                own.source_column, own.target_column, own.time, own.kinds, own.columns, own.exclude, self._channels
            ),
        )

    def open(self, source: Any) -> EventDataset:
        log = self.log(source)
        if self._channels is None:
            self._channels, self._nodes = log.channels, len(log.nodes)
        return EventDataset(log, self.settings.recent)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        return [
            Choice("method", "future-edge", "an event is told from one with another target, pause or features"),
            Choice("encoder", "transformer:nano", "attends to the recent events of both ends; no state to carry along"),
            Choice("batch_size", min(256, max(2, found.count // 4)), "events that follow one another"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        chosen = spaced(len(dataset), _FITTED)
        samples = [item for item in dataset.read(chosen.tolist()) if isinstance(item, Sample)]
        values = np.stack([sample.data[-1] for sample in samples]).astype(np.float64)
        time = np.stack([sample.time for sample in samples if sample.time is not None])
        pause = time[:, -1] - np.where(np.isnan(time[:, :-1]), -np.inf, time[:, :-1]).max(axis=1)
        pause = pause[np.isfinite(pause) & (pause > 0)]
        self._gap = float(np.median(pause)) if len(pause) else 1.0
        known = np.ma.masked_invalid(values)
        low, middle, high = (np.ma.filled(_quantile(known, share), 0.0) for share in (0.25, 0.5, 0.75))
        spread = (high - low) / 1.349
        deviation = np.ma.filled(known.std(axis=0), 0.0)
        least = np.maximum(1e-12 * np.abs(middle), TINY)
        scale = np.where(spread > least, spread, np.where(deviation > least, deviation, 1.0))
        self._learn(middle, scale)

    def _learn(self, median: Any, scale: Any) -> None:
        self._median = torch.tensor(np.asarray(median), dtype=torch.float32)
        self._scale = torch.tensor(np.asarray(scale), dtype=torch.float32)

    def state(self) -> dict[str, Any]:
        return {
            "channels": list(self._channels or ()),
            "nodes": self._nodes,
            "gap": self._gap,
            "median": self._median.tolist(),
            "scale": self._scale.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._channels, self._nodes, self._gap = tuple(state["channels"]), int(state["nodes"]), float(state["gap"])
        self._learn(state["median"], state["scale"])

    @property
    def nodes(self) -> int:
        """Nodes of the training source."""
        return self._nodes

    @property
    def gap(self) -> float:
        """Seconds that usually pass between one event of a node and the next."""
        return self._gap

    @property
    def features(self) -> int:
        """Features F of an event."""
        return len(self._median)

    @property
    def channels(self) -> int:
        """Channels C of a token: features of the event, and how it stands to the sample's own event."""
        return self.features + views.STRUCTURE

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch(
            data=torch.from_numpy(np.stack([sample.data for sample in samples])),
            index=torch.tensor([sample.index for sample in samples]),
            time=torch.from_numpy(np.stack([sample.time for sample in samples if sample.time is not None])),
            group=torch.tensor([sample.group for sample in samples]),
            extra={key: torch.from_numpy(np.stack([s.extra[key] for s in samples])) for key in ("nodes", "number")},
        )

    def nothing_seen(self) -> RecentEvents:
        return RecentEvents(self.features, self.settings.recent)

    def fresh_batch(self, seen: RecentEvents, coming: Log) -> Batch:
        past = np.concatenate([seen.recent(coming.ends[:, end]) for end in (0, 1)], axis=1)
        data, time, nodes = around(seen.log, past)
        index = np.arange(seen.count, seen.count + len(coming))
        return Batch(
            data=torch.from_numpy(np.concatenate([data, coming.features[:, None]], axis=1)),
            index=torch.from_numpy(index),
            time=torch.from_numpy(np.concatenate([time, coming.time[:, None]], axis=1)),
            extra={
                "nodes": torch.from_numpy(np.concatenate([nodes, coming.ends[:, None]], axis=1)),
                "number": torch.from_numpy(np.concatenate([seen.numbers(past), index[:, None]], axis=1)),
            },
        )

    def prepare(self, batch: Batch) -> Batch:
        return self._view(batch, batch)

    def _view(self, seen: Batch, batch: Batch) -> Batch:
        """The view of what is `seen` of a raw batch; `extra` keeps what really happened, for encoders that remember."""
        merged = views.merge(seen)
        data = torch.cat([self._normalise(merged.data), views.structure(merged, self._gap)], dim=2)
        assert batch.time is not None
        happened = {
            "happened": batch.extra["nodes"][:, -1],
            "message": self._normalise(batch.data[:, -1]).nan_to_num(),
            "when": batch.time[:, -1] / self._gap,
        }
        return merged.with_(data=data, extra={"nodes": merged.extra["nodes"], **happened})

    def _normalise(self, x: Tensor) -> Tensor:
        """Long tails are drawn in: amounts often span many orders of magnitude."""
        median, scale = (on_device(of, x.device).to(x.dtype) for of in (self._median, self._scale))
        return ((x - median) / scale).asinh()

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        own, whole = self.settings, policy in ("light", "none")
        seen = batch if whole else views.thin(batch, draw, own.span, own.masking)
        return self._view(seen, batch).with_(draw=draw)

    def transformations(self) -> Mapping[str, Transformation]:
        """Of an event: nothing, its target, the pause before it or its features are replaced by another event's."""
        featured = self.features > 0

        def edge(batch: Batch, which: Tensor, draw: Draw) -> Batch:
            return self._view(views.replaced(batch, which, draw, featured), batch).with_(draw=draw)

        return {"future-edge": Transformation(4 if featured else 3, edge)}

    # ---- tokens

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.modalities.events.tokens import EventStem, EventTrunk

        shape = SIZES[size]
        return EventTrunk(EventStem(self.channels, shape.dim), shape.dim, shape.depth, shape.heads, causal=causal)

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        return span_mask(draw, batch.data.shape[1], 1, ratio, views.real_tokens(batch))

    def targets(self, batch: Batch) -> Tensor:
        return batch.data

    @property
    def target_dim(self) -> int:
        return self.channels

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return value_error(prediction, target)

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        names = self._channels or tuple(str(number) for number in range(sample.data.shape[1]))
        assert sample.time is not None
        source, target = sample.extra["nodes"][-1]
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(names, sample.data[-1], strict=True) if v == v)
        words = f"{moment(sample.time[-1])}: node {source} → node {target}" + (f"; {values}" if values else "")
        past = int((sample.extra["number"] >= 0).sum()) - 1
        return f"<p>{html.escape(words)}</p><p><small>after {past} events of its ends</small></p>"

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """The event's own channels, and the means of those of its history; missing values are 0, as normalised."""
        from labelfree.data.loader import batches

        found = []
        for dataset in (train, *others):
            rows = [_summary(self.prepare(raw)) for raw in batches(dataset, self, 1024)]
            found.append(torch.cat(rows).numpy())
        return found


def _quantile(known: np.ma.MaskedArray, share: float) -> np.ma.MaskedArray:
    """(F,) quantiles of the known values of each column, masked where there are none."""
    columns = [np.quantile(column.compressed(), share) if column.count() else np.ma.masked for column in known.T]
    return np.ma.array(columns, dtype=np.float64)


def _summary(view: Batch) -> Tensor:
    """(B, 2C) the last token of each sample, and the mean of those before it."""
    assert view.lengths is not None
    x, rows = view.data.nan_to_num(), torch.arange(len(view))
    event = x[rows, view.lengths - 1]
    return torch.cat([event, (x.sum(dim=1) - event) / (view.lengths[:, None] - 1).clamp_min(1)], dim=1)
