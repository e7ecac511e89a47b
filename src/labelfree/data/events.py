"""Events of an evolving graph: when, from which node, to which node, with what features; read into one log in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree.data import columns as col
from labelfree.data.batch import Unreadable
from labelfree.data.columns import ReadOptions
from labelfree.data.sources import ARRAYS, TABLES, column_values, frame, hash_of, load_arrays, read_table
from labelfree.errors import LabelfreeError
from labelfree.files import existing

#: Names of the two columns of nodes, plainly spelt, and whether the two sides are nodes of different kinds.
_PAIRS: tuple[tuple[str, str, bool], ...] = (
    ("source", "target", False),
    ("source", "destination", False),
    ("src", "dst", False),
    ("source_id", "target_id", False),
    ("source_ip", "destination_ip", False),
    ("src_ip", "dst_ip", False),
    ("from", "to", False),
    ("from_id", "to_id", False),
    ("sender", "receiver", False),
    ("sender", "recipient", False),
    ("payer", "payee", False),
    ("caller", "callee", False),
    ("nameorig", "namedest", False),
    ("u", "v", False),
    ("user", "item", True),
    ("user_id", "item_id", True),
    ("customer", "merchant", True),
    ("customer_id", "merchant_id", True),
)


@dataclass(frozen=True)
class LogOptions:
    """How a source of events is to be read.

    Attributes:
        source, target: columns of the nodes at both ends; "" to find them by name.
        time: column of times; "" to find it.
        kinds: "one" where both ends are nodes of one kind, "two" where equal names on both sides are different nodes.
        columns: features of an event, by name; empty for all that look like it.
        exclude: columns that are no features, such as the label.
        channels: features that the encoder was trained on, as `Log.channels` names them; None where there is none yet.
    """

    source: str = ""
    target: str = ""
    time: str = ""
    kinds: str = "auto"
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Log:
    """N events in order of time between V nodes.

    Attributes:
        time: (N,) float64 seconds, ascending.
        ends: (N, 2) int64 numbers of the source and of the target.
        nodes: the V names of the nodes by their number.
        features: (N, F) float32, NaN where missing; categories are columns of 0 and 1.
        channels: names of the F features ("amount", "kind=card").
        rows: (N,) the row of the source that each event stood in.
        columns: further columns, by name, a value an event; made when asked for.
        facts: words about what was found.
        unreadable: rows that are no events.
        fingerprint: hash of the content.
    """

    time: np.ndarray
    ends: np.ndarray
    nodes: Sequence[Any]
    features: np.ndarray
    channels: tuple[str, ...]
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    unreadable: Sequence[Unreadable] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.time)


class Ordered(Mapping[str, np.ndarray]):
    """The columns of a table, its rows in the order of `rows`; each is made when it is asked for, as few are."""

    def __init__(self, table: pa.Table, rows: np.ndarray) -> None:
        self._table, self._rows = table, rows

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._table.column_names:
            raise KeyError(name)
        return column_values(self._table, name)[self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


def as_table(source: Any, ragged: dict[int, str] | None = None) -> tuple[pa.Table, str]:
    """A source as a table, and what to call it: a path, Arrow, a data frame, arrays by name, `TemporalData` of PyG.
    `ragged` is as of `read_table`.

    Raises:
        LabelfreeError: nothing there, or no table of events.
    """
    if isinstance(source, str | Path):
        path = existing(source)
        if path.suffix.lower() in TABLES:
            return read_table(path, ragged=ragged), f"'{path}'"
        if path.suffix.lower() in ARRAYS:
            return _from_arrays(load_arrays(path), f"'{path}'"), f"'{path}'"
        raise LabelfreeError(f"'{path}' is no table of events.", f"Expected {', '.join((*TABLES, '.npz'))}.")
    if (table := frame(source)) is not None:
        return table, "the table" if table is source else "the frame"
    if is_temporal(source):
        return _from_temporal(source), "the temporal data"
    if isinstance(source, Mapping):
        return _from_arrays({name: np.asarray(array) for name, array in source.items()}, "the dictionary"), "the events"
    raise LabelfreeError(f"{type(source).__name__} is no source of events.", "Give a table with time, source, target.")


def is_temporal(source: Any) -> bool:
    """Whether it looks like `torch_geometric.data.TemporalData`."""
    return all(hasattr(source, name) for name in ("src", "dst", "t", "msg"))


def _from_temporal(data: Any) -> pa.Table:
    arrays = {"t": data.t, "src": data.src, "dst": data.dst}
    arrays |= {name: getattr(data, name) for name in ("msg", "y") if getattr(data, name, None) is not None}
    return _from_arrays({name: np.asarray(value) for name, value in arrays.items()}, "the temporal data")


def _from_arrays(arrays: Mapping[str, np.ndarray], what: str) -> pa.Table:
    """One column an array (N,), one a column of an array (N, F)."""
    lengths = {len(array) for array in arrays.values() if array.ndim in (1, 2)}
    if len(lengths) != 1:
        shapes = ", ".join(f"{name or 'array'} {array.shape}" for name, array in arrays.items())
        raise LabelfreeError(f"{what} holds no events: expected arrays of one length, found {shapes or 'nothing'}.")
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim == 2:
            columns |= {f"{name}{number}": np.ascontiguousarray(array[:, number]) for number in range(array.shape[1])}
        else:
            columns[name] = array
    return pa.table(columns)


def find_columns(table: pa.Table, options: LogOptions) -> tuple[str, str, str, bool] | None:
    """Names of the columns of time, source and target, and whether ends are of two kinds; None if not all are there.

    Raises:
        LabelfreeError: a column that was named is missing, or named twice.
    """
    for key in ("source", "target", "time"):
        if getattr(options, key):
            col.require(table, [getattr(options, key)], key if key == "time" else f"{key}_column")
    plain = {col.plain(name): name for name in table.column_names}
    two = options.kinds == "two"
    source, target = options.source, options.target
    if not (source and target):
        for one, other, kinds in _PAIRS:
            if one in plain and other in plain:
                source, target = source or plain[one], target or plain[other]
                two = two or (kinds and options.kinds == "auto")
                break
        else:
            return None
    if len({source, target, options.time}) < 3:
        raise LabelfreeError(
            f"One column cannot be two of time, source and target: '{options.time}', '{source}', '{target}'.",
            "Name three.",
        )
    rest, own = table.drop_columns([source, target]), ReadOptions(time=options.time, channels=options.channels or ())
    time = col.time_column(rest, own) or col.time_column(rest, own, ordered=False)
    return (time, source, target, two) if time else None


def read_log(source: Any, options: LogOptions) -> Log:
    """Read a source of events, sorted by time.

    Raises:
        LabelfreeError: nothing there, columns missing, or no event in it.
    """
    ragged: dict[int, str] = {}
    table, what = as_table(source, ragged)
    found = find_columns(table, options)
    if found is None:
        raise LabelfreeError(
            f"{what} has no columns of time, source and target that can be told by name and content: it has "
            f"{', '.join(table.column_names[:20])}.",
            "Name them: time=…, source_column=…, target_column=….",
        )
    time_name, source_name, target_name, two = found
    time = col.seconds(table.column(time_name))
    if time is None:
        raise LabelfreeError(f"Column '{time_name}' holds no times.", "Name the column of times with time=….")
    bad = _unreadable(time, table.select([source_name, target_name]), time_name, ragged)
    kept = np.setdiff1d(np.arange(len(table)), [item.index for item in bad])
    if len(kept) == 0:
        reason = f"; {bad[0].name}: {bad[0].reason}" if bad else ""
        raise LabelfreeError(f"{what} has no events{reason}.", "Name a table with events.")
    order = kept[np.argsort(time[kept], kind="stable")]
    # without gaps, beside which whole numbers would be floats, too short for large ones
    whole = table.select([source_name, target_name]).take(pa.array(order))
    ends, nodes = _numbered(column_values(whole, source_name), column_values(whole, target_name), two)
    measured = col.with_numbers(table, options.channels or ())
    features, channels, left = _features(table, measured, (time_name, source_name, target_name), options)
    facts = _facts(time, kept, order, ends, channels, left)
    if order_of_dates := col.order_of_dates(table.column(time_name)):
        facts["times"] = f"read as {order_of_dates}"
    if as_text := col.words_of_numbers(table, measured, channels):
        facts["numbers written as text"] = as_text
    return Log(
        time=time[order],
        ends=ends,
        nodes=nodes,
        features=features[order],
        channels=channels,
        rows=order,
        columns=Ordered(table.drop_columns([time_name]), order),
        facts=facts,
        unreadable=bad,
        fingerprint=hash_of(time[order], ends, *channels, features.reshape(-1)[:: max(1, features.size // 1_000_000)]),
    )


def _unreadable(time: np.ndarray, ends: pa.Table, time_name: str, ragged: Mapping[int, str]) -> list[Unreadable]:
    reasons = dict.fromkeys(np.flatnonzero(~np.isfinite(time)).tolist(), f"no time in '{time_name}'")
    reasons |= ragged
    for name in ends.column_names:
        values = ends.column(name)
        values = values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values
        absent = pc.is_null(values, nan_is_null=True)
        absent = pc.or_kleene(absent, pc.equal(values, "")) if col.is_words(values.type) else absent
        reasons |= {row: f"no node in '{name}'" for row in np.flatnonzero(absent).tolist() if row not in reasons}
    return [Unreadable(row, f"row {row}", reasons[row]) for row in sorted(reasons)]


def _numbered(starts: np.ndarray, stops: np.ndarray, two: bool) -> tuple[np.ndarray, list[Any]]:
    """(N, 2) numbers of the nodes, and the nodes' names; of two kinds, the second's come after the first's."""
    sides = [_plain(values) for values in (starts, stops)]
    if sides[0].dtype.kind != sides[1].dtype.kind:
        sides = [np.array([str(name) for name in side.tolist()], dtype=object) for side in sides]
    if two:
        (one, first), (other, second) = map(col.distinct, sides)
        return np.stack([first, second + len(one)], axis=1), [*one.tolist(), *((name,) for name in other.tolist())]
    names, numbers = col.distinct(np.concatenate(sides))
    return numbers.reshape(2, -1).T.astype(np.int64, order="C"), names.tolist()


def _plain(values: np.ndarray) -> np.ndarray:
    """Numbers as whole numbers where they are."""
    whole = values.dtype.kind == "f" and bool((values == np.round(values)).all())
    return values.astype(np.int64) if whole else values


def _features(
    table: pa.Table, measured: pa.Table, taken: Sequence[str], options: LogOptions
) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
    """(R, F) features of every row, their names, and what was left out with the reason; `measured` has the numbers."""
    left: dict[str, str] = {}
    channels = options.channels
    if channels is None:
        channels, left = _choose(table, measured, taken, options)
    found = [_channel(table, measured, channel) for channel in channels]
    matrix = np.stack(found, axis=1) if found else np.zeros((len(table), 0))
    return matrix.astype(np.float32), channels, left


def _choose(
    table: pa.Table, measured: pa.Table, taken: Sequence[str], options: LogOptions
) -> tuple[tuple[str, ...], dict[str, str]]:
    col.require(table, options.columns, "columns")
    col.require(table, options.exclude, "exclude")
    wanted = [name for name in options.columns or table.column_names if name not in (*taken, *options.exclude)]
    left = dict.fromkeys(options.exclude, "excluded")
    measurable = col.numeric_names(measured)
    if not options.columns:
        telling = [name for name in wanted if col.called_like_label(name, measurable)]
        left |= dict.fromkeys(telling, "named like a label")
        wanted = [name for name in wanted if name not in left]
    numeric = [name for name in wanted if name in measurable]
    if numeric and not options.columns:
        try:
            numeric, others = col.choose_channels(measured.select(numeric), (), ReadOptions())
        except LabelfreeError:
            others = dict.fromkeys(numeric, "numbers the rows")
            numeric = []
        left |= others
    channels = list(numeric)
    for name in wanted:
        if name not in numeric and name not in left:
            values = _categories(table.column(name))
            channels += [f"{name}={value}" for value in values]
            left |= {} if values else {name: f"more than {col.CATEGORIES} different values, or only one"}
    return tuple(channels), left


def _categories(column: pa.ChunkedArray) -> list[str]:
    """The values of a column of text or truth values, the most frequent first; none where they are too many."""
    if not (pa.types.is_boolean(column.type) or col.is_words(column.type) or pa.types.is_dictionary(column.type)):
        return []
    found = pc.value_counts(_spelt(column).drop_null())
    if not 2 <= len(found) <= col.CATEGORIES:
        return []
    return [value for _, value in sorted((-item["counts"], item["values"]) for item in found.to_pylist())]


def _spelt(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as channels name them."""
    return pc.if_else(column, "True", "False") if pa.types.is_boolean(column.type) else pc.cast(column, pa.string())


def _channel(table: pa.Table, measured: pa.Table, channel: str) -> np.ndarray:
    """(R,) values of one feature: a numeric column, or whether a column has a value."""
    if channel in table.column_names:
        if channel not in col.numeric_names(measured):
            raise LabelfreeError(
                f"Column '{channel}' holds {table.schema.field(channel).type}, not numbers.", "Give it as numbers."
            )
        return col.numbers(measured, channel)
    # a value may hold "=" as well
    name = max((name for name in table.column_names if channel.startswith(f"{name}=")), key=len, default="")
    col.require(table, [name or channel.partition("=")[0]], "The trained encoder")
    value = channel.removeprefix(f"{name}=")
    return np.asarray(pc.cast(pc.equal(_spelt(table.column(name)), value), pa.float64()).to_numpy())


def _facts(
    time: np.ndarray,
    kept: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    channels: Sequence[str],
    left: Mapping[str, str],
) -> dict[str, str]:
    late = int((np.diff(time[kept]) < 0).sum())
    loops = int((ends[:, 0] == ends[:, 1]).sum())
    width = int(ends.max()) + 1
    pairs = len(np.unique(ends[:, 0] * width + ends[:, 1]))
    last, first = time[order[-1]], time[order[0]]
    facts = {
        "nodes": f"{len(np.unique(ends)):,}",
        "between": f"{pairs:,} pairs, {len(ends) - pairs:,} events repeat one",
        "over": f"{last - first:,.6g} seconds",
        "features": f"{len(channels)}" + (f" ({', '.join(channels[:12])})" if channels else ""),
    }
    if loops:
        facts["self-loops"] = f"{loops:,}, kept"
    if late:
        facts["order"] = f"{late:,} events came before the one above them; sorted by time"
    if left:
        facts["left out"] = "; ".join(f"{name} ({reason})" for name, reason in left.items())
    return facts


def moment(seconds: float) -> str:
    """A time as text, to the microsecond: `.6g` would not tell one day's Unix times apart."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


class Histories:
    """The earlier events of every node of a log, found without a loop.

    Arguments:
        ends: (N, 2) nodes of each event, in order of time.
    """

    def __init__(self, ends: np.ndarray) -> None:
        self._count = max(1, len(ends))
        keys = ends * self._count + np.arange(len(ends))[:, None]
        self._keys = np.unique(keys)  # a self-loop is one event of its node

    def recent(self, nodes: np.ndarray, before: np.ndarray, most: int) -> np.ndarray:
        """(B, most) int64 numbers of the last events of `nodes` (B,) before event `before` (B,), oldest first; -1 where
        there were fewer.
        """
        first = np.searchsorted(self._keys, nodes * self._count)
        place = np.searchsorted(self._keys, nodes * self._count + before)[:, None] - np.arange(most, 0, -1)
        found = self._keys[place.clip(0, max(0, len(self._keys) - 1))] % self._count
        return np.where(place >= first[:, None], found, -1)


class RecentEvents:
    """The last events of every node of a stream that never ends, in memory that grows with the nodes alone.

    Arguments:
        features: numbers F that an event has.
        most: events kept a node.

    Attributes:
        count: events seen.
        clock: time of the last one.
    """

    def __init__(self, features: int, most: int) -> None:
        self.most, self.count, self.clock = most, 0, -np.inf
        self._recent = np.full((0, most), -1, dtype=np.int64)
        self._size = 0
        self._numbers = np.zeros(1024, dtype=np.int64)
        self._time = np.zeros(1024)
        self._ends = np.zeros((1024, 2), dtype=np.int64)
        self._features = np.zeros((1024, features), dtype=np.float32)

    def recent(self, nodes: np.ndarray) -> np.ndarray:
        """(B, most) places in `log` of the last events of `nodes` (B,), oldest first; -1 where there were fewer."""
        known = nodes < len(self._recent)
        numbers = np.full((len(nodes), self.most), -1, dtype=np.int64)
        numbers[known] = self._recent[nodes[known]]
        return np.where(numbers >= 0, np.searchsorted(self._numbers[: self._size], numbers), -1)

    @property
    def log(self) -> Log:
        """The events that are some node's last ones, and perhaps others."""
        size = max(1, self._size)  # one row at least, for places that are -1 to point at
        return Log(self._time[:size], self._ends[:size], (), self._features[:size], ())

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Numbers, counted from the beginning of the stream, of the events at places in `log`; -1 stays."""
        return np.where(places >= 0, self._numbers[places.clip(0)], -1)

    def add(self, log: Log) -> None:
        """Take in events that follow those seen."""
        if not len(log):
            return
        if self._size + len(log) > len(self._numbers):
            self._forget(len(log))
        here = slice(self._size, self._size + len(log))
        self._numbers[here] = np.arange(self.count, self.count + len(log))
        self._time[here], self._ends[here], self._features[here] = log.time, log.ends, log.features
        self._make_room(int(log.ends.max()) + 1)
        self._push(log.ends, self._numbers[here])
        self._size += len(log)
        self.count += len(log)
        self.clock = float(log.time[-1])

    def _make_room(self, nodes: int) -> None:
        if nodes > len(self._recent):
            more = max(nodes, 2 * len(self._recent)) - len(self._recent)
            self._recent = np.concatenate([self._recent, np.full((more, self.most), -1, dtype=np.int64)])

    def _push(self, ends: np.ndarray, numbers: np.ndarray) -> None:
        """Move each node's row to the left by as many events as it has now, and write those at the right."""
        entries = np.unique(np.stack([ends.ravel(), numbers.repeat(2)], axis=1), axis=0)
        nodes, first, counts = np.unique(entries[:, 0], return_index=True, return_counts=True)
        place = np.arange(self.most) + counts[:, None]
        old = np.take_along_axis(self._recent[nodes], place.clip(max=self.most - 1), axis=1)
        fresh = entries[(first[:, None] + place - self.most).clip(0, len(entries) - 1), 1]
        self._recent[nodes] = np.where(place < self.most, old, fresh)

    def _forget(self, coming: int) -> None:
        """Drop events that are no node's last ones any more, and make room for twice as many as are left."""
        last = np.unique(self._recent[self._recent >= 0])
        kept = np.searchsorted(self._numbers[: self._size], last)
        room = 2 * (len(kept) + coming)
        for name in ("_numbers", "_time", "_ends", "_features"):
            old = getattr(self, name)
            new = np.zeros((room, *old.shape[1:]), dtype=old.dtype)
            new[: len(kept)] = old[kept]
            setattr(self, name, new)
        self._size = len(kept)


def around(log: Log, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (B, T, F), time (B, T), ends (B, T, 2) of the events at `places` (B, T); NaN and -1 where that is -1."""
    absent = places < 0
    features, time, ends = log.features[places], log.time[places], log.ends[places]
    features[absent], time[absent], ends[absent] = np.nan, np.nan, -1
    return features, time, ends
