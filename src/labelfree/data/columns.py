"""What the columns of a table of measurements are: times, identities, labels, channels. Nothing is guessed silently."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree.data import written
from labelfree.data.sources import column_values
from labelfree.errors import LabelfreeError, nearest

_TIME = "time timestamp datetime date date_time timestep time_step step ts ds t seconds"
_LABEL = (
    "label labels class classes target targets y category outcome ground_truth state_label "
    "fraud is_fraud isfraud anomaly is_anomaly attack is_attack illicit"
)
_IDENTITY = (
    "id series_id series recording recording_id record record_id subject subject_id person person_id patient "
    "patient_id participant user user_id device device_id sensor_id session session_id unit unit_id item_id "
    "unique_id group"
)
#: Called so together, they are what a sensor measures along three axes.
AXES = frozenset("xyz")
TIME_NAMES, LABEL_NAMES, IDENTITY_NAMES = (frozenset(words.split()) for words in (_TIME, _LABEL, _IDENTITY))
#: Text of at most so many different values is categories, also where these are numbers.
CATEGORIES = 32
#: Least deviation, in whatever unit, that float32 numbers can be divided by.
TINY = 1e-30
#: Why a column is left out whose values look like codes of classes, and how many different ones there are at most.
CODES, _FEW = "few whole numbers, as a label has", 20
#: Times are in no order where more than one row of so many steps back.
_ROWS = 20


@dataclass(frozen=True)
class ReadOptions:
    """How a source of series is to be read.

    Attributes:
        layout: "auto", "long" (a row a time step) or "wide" (a row a series).
        columns: the channels, by name; empty for all numeric columns that look like measurements.
        exclude: columns that are not channels.
        group: column that says whose series it is; also cuts a long table.
        time: column of times; "" to find it.
        gap: a step of more than `gap` median steps starts a new recording; 0 for never.
        channels: channels of the training data, where an encoder has been trained already.
    """

    layout: str = "auto"
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    group: str = ""
    time: str = ""
    gap: float = 10.0
    channels: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A column's name as the sets above spell it: letters of any script and digits, parted by single lines."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def called_like_label(name: str, numeric: Collection[str]) -> bool:
    """Whether a column is called like a label, which y is not where x, y and z are all `numeric` columns."""
    spelt = plain(name)
    return spelt in LABEL_NAMES and not (spelt == "y" and AXES.issubset(map(plain, numeric)))


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_words(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_moment(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)


def numeric_names(table: pa.Table) -> list[str]:
    """Columns that hold numbers; a column of nothing but nulls counts, as a channel whose values are all missing."""
    return [f.name for f in table.schema if is_number(f.type) or pa.types.is_null(f.type)]


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """(R,) float64, NaN where missing or infinite."""
    column = table.column(name)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    values = np.array(pc.cast(column, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def with_numbers(table: pa.Table, wanted: Collection[str] = ()) -> pa.Table:
    """The table with its columns of numbers written as text as numbers, null where a cell is none.

    Text of few different values stays, which are codes, but for columns that are `wanted` as numbers.
    """
    for place, field in enumerate(table.schema):
        if not is_words(field.type):
            continue
        column = table.column(place)
        few = field.name not in wanted and pc.count_distinct(column).as_py() <= CATEGORIES
        if not few and (found := written.numbers(column)) is not None:
            table = table.set_column(place, field.name, found)
    return table


def words_of_numbers(table: pa.Table, measured: pa.Table, names: Sequence[str]) -> str:
    """Which of the columns are numbers in `measured` that `table` has as text, and how many of their cells are none."""
    found = []
    for name in names:
        if name in table.column_names and is_words(table.schema.field(name).type):
            bad = measured.column(name).null_count - table.column(name).null_count
            found.append(f"{name} ({bad:,} of them unreadable)" if bad else name)
    return ", ".join(found)


def require(table: pa.Table, names: Sequence[str], what: str) -> None:
    """Raises LabelfreeError where a column is missing, naming what `what` asked for."""
    for name in names:
        if name not in table.column_names:
            has = ", ".join(table.column_names[:20])
            raise LabelfreeError(
                f"{what} names the column '{name}', but the table has {has}.", nearest(name, table.column_names)
            )


def seconds(column: pa.ChunkedArray) -> np.ndarray | None:
    """(R,) float64 times in seconds, NaN where a cell holds none; None where most of its cells hold none.

    Numbers, also those written as text, are as they are, but for dates (20240131) and Unix times in ms, µs and ns.
    """
    found = dates(column)
    return _scaled(_numeric(column)) if found is None else found


def dates(column: pa.ChunkedArray) -> np.ndarray | None:
    """(R,) float64 seconds of moments, of dates written as text, and of whole numbers all of which are dates
    (20240131); NaN where a cell holds none, None where most do.
    """
    if is_moment(column.type):
        return _from_epoch(column)
    found = written.dates(column) if is_words(column.type) else None
    return _from_digits(_numeric(column)) if found is None else found


def _numeric(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of numbers, also of those written as text; None for another."""
    if is_words(column.type):
        return written.numbers(column)
    return column if is_number(column.type) else None


def _from_digits(column: pa.ChunkedArray | None) -> np.ndarray | None:
    """Seconds of numbers of eight digits, where each is a date between 1900 and 2100."""
    values = np.zeros(0) if column is None else numbers(pa.table({"": column}), "")
    known = values[~np.isnan(values)]
    if not len(known) or known.min() < 19000101 or known.max() > 21001231 or (known % 1).any():
        return None
    whole = known.astype(np.int64)
    year, month, day = whole // 10000, whole // 100 % 100, whole % 100
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    if ((month < 1) | (month > 12) | (days.astype("datetime64[M]") != months)).any():
        return None
    values[~np.isnan(values)] = days.astype("datetime64[s]").astype(np.float64)
    return values


def _scaled(column: pa.ChunkedArray | None) -> np.ndarray | None:
    """Numbers as seconds, in the unit of most of them: one outlying time does not rescale the others."""
    if column is None:
        return None
    values = numbers(pa.table({"": column}), "")
    typical = np.median(np.abs(values[~np.isnan(values)])) if not np.isnan(values).all() else 0.0
    units = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
    return values / next((unit for bound, unit in units if typical > bound), 1.0)


def _from_epoch(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_time(column.type):
        counts, unit = pc.cast(pc.cast(column, pa.time64("ns")), pa.int64()), 1e9
    else:
        counts, unit = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64()), 1e6
    return np.asarray(pc.cast(counts, pa.float64(), safe=False).to_numpy(), dtype=np.float64) / unit


def time_column(table: pa.Table, options: ReadOptions, ordered: bool = True) -> str | None:
    """The column of times: the one named, else one of a date type, else one named like a time that holds dates or
    numbers, which have to run one way where times are `ordered` (T may be a temperature).
    """
    if options.time:
        require(table, [options.time], "time")
        return options.time
    free = [f for f in table.schema if f.name not in (*options.columns, *options.channels, options.group)]
    named = [f.name for f in free if plain(f.name) in TIME_NAMES]
    moments = [f.name for f in free if is_moment(f.type)]
    both = [name for name in moments if name in named]
    return next((name for name in both + moments + named if _tells_time(table, name, options, ordered)), None)


def _tells_time(table: pa.Table, name: str, options: ReadOptions, ordered: bool) -> bool:
    column = table.column(name)
    if dates(column) is not None:
        return True
    time = _scaled(_numeric(column))
    return time is not None and (not ordered or _runs(time, identity_of(table, identity_columns(table, options))))


def _runs(time: np.ndarray, identity: np.ndarray) -> bool:
    """Whether time hardly ever steps back within an identity, or hardly ever forth (the latest row comes first)."""
    order = np.argsort(identity, kind="stable")
    step = np.diff(time[order])[np.diff(identity[order]) == 0]
    return bool(min((step < 0).sum(), (step > 0).sum()) * _ROWS <= len(time))


def unread_times(table: pa.Table, taken: Collection[str]) -> str:
    """What is to be said where the table's column that is named like a time is not taken for one."""
    name = next((name for name in table.column_names if plain(name) in TIME_NAMES and name not in taken), None)
    if name is None:
        return ""
    known, order = table.column(name).drop_null(), "rows are taken in their order"
    if seconds(known) is not None:
        return f"'{name}' runs back and forth, as times do not: {order} (time={name} sorts them)"
    example = f" ('{known[0]}')" if len(known) else ""
    return f"'{name}' holds none that can be read{example}: {order}"


def order_of_dates(column: pa.ChunkedArray) -> str:
    """How dates written as text are read ("month/day/year"), where that is not plain to see; else ""."""
    return written.order_of_dates(column) if is_words(column.type) else ""


def identity_columns(table: pa.Table, options: ReadOptions) -> list[str]:
    """Columns that say which recording a row of a long table is of: the group, and those named like an identity."""
    if options.group:
        require(table, [options.group], "group")
    named = [
        name
        for name in table.column_names
        if plain(name) in IDENTITY_NAMES
        and name not in (*options.columns, options.group)
        and pc.count_distinct(table.column(name)).as_py() * 4 <= len(table)
    ]
    return ([options.group] if options.group else []) + named


def identity_of(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(R,) int64: rows get equal numbers that are equal in all columns of these names."""
    identity = np.zeros(len(table), dtype=np.int64)
    for name in names:
        values = codes(column_values(table, name))
        identity = codes(identity * (int(values.max(initial=0)) + 1) + values)
    return identity


def looks_wide(table: pa.Table) -> bool:
    """Whether rows look like series: many numeric columns numbered through ("0", "1", … or "t1", "t2", …)."""
    numeric = numeric_names(table)
    tails = [re.search(r"(\d+)$", name) for name in numeric]
    counted = [int(tail.group(1)) for tail in tails if tail]
    running = sum(b - a == 1 for a, b in pairwise(counted))
    return running >= 7 and running * 3 >= 2 * (len(numeric) - 1)


def choose_channels(
    table: pa.Table,
    taken: Sequence[str],
    options: ReadOptions,
    constant_inside: Mapping[str, bool] | None = None,
    suspects: Collection[str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Names of the channels, and of what was left out with the reason.

    Args:
        table: the measurements.
        taken: columns already known to be times, groups or identities.
        options: what the user said.
        constant_inside: for numeric columns of a long table, whether they never change within a recording.
        suspects: columns that may be codes of classes; None for all.

    Raises:
        LabelfreeError: a column named by the user, or one that the encoder was trained on, is missing or not numeric;
            or nothing numeric is left.
    """
    numeric = numeric_names(table)
    wanted = options.channels or options.columns
    if wanted:
        require(table, wanted, "The trained encoder" if options.channels else "columns")
        for name in wanted:
            if name not in numeric:
                raise LabelfreeError(f"Column '{name}' holds {table.schema.field(name).type}, not numbers.")
        return list(wanted), {}
    require(table, options.exclude, "exclude")
    free = [name for name in numeric if name not in taken and name not in options.exclude]
    left = dict.fromkeys(options.exclude, "excluded")
    smooth = [name for name in free if not is_whole(table, name)]
    for name in free:
        reason = ""
        if called_like_label(name, numeric):
            reason = "named like a label"
        elif plain(name) in IDENTITY_NAMES or _counts_rows(table, name):
            reason = "numbers the rows"
        elif constant_inside and constant_inside.get(name):
            reason = "never changes within a recording"
        elif (suspects is None or name in suspects) and smooth and name not in smooth and are_few(table.column(name)):
            reason = CODES
        if reason:
            left[name] = reason
    channels = [name for name in free if name not in left]
    if not channels:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "no column holds numbers"
        raise LabelfreeError(f"The table has no channel to learn from ({why}).", "Name them: columns=a,b.")
    return channels, left


def is_whole(table: pa.Table, name: str) -> bool:
    """Whether a column holds no numbers but whole ones."""
    if pa.types.is_integer(table.schema.field(name).type):
        return True
    values = numbers(table, name)
    known = values[~np.isnan(values)]
    return bool((known == np.round(known)).all())


def are_few(values: pa.ChunkedArray) -> bool:
    """Whether the different values are as few as codes of classes are."""
    return not pa.types.is_null(values.type) and 2 <= pc.count_distinct(values).as_py() <= _FEW


def _counts_rows(table: pa.Table, name: str) -> bool:
    if name.strip() not in ("", "#") and not re.fullmatch(r"index|row|unnamed.*", plain(name)):
        return False
    steps = np.diff(numbers(table, name))
    return bool((steps == 1).all())


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values, ascending, and (R,) the place of each row's among them; objects are compared as texts."""
    if values.dtype != object:
        return np.unique(values, return_inverse=True)
    texts = [str(value) for value in values.tolist()]  # an array of them would make each as wide as the longest
    names = sorted(set(texts))
    place = {name: number for number, name in enumerate(names)}
    return np.array(names, dtype=object), np.array([place[text] for text in texts], dtype=np.int64)


def codes(values: np.ndarray) -> np.ndarray:
    """(R,) int64: equal values get equal numbers, in the order of their first appearance."""
    found, inverse = distinct(values)
    first = np.empty(len(found), dtype=np.int64)
    first[inverse[::-1]] = np.arange(len(values))[::-1]
    return np.argsort(np.argsort(first))[inverse]


def group_numbers(values: np.ndarray) -> np.ndarray:
    """(R,) int64: whole numbers as they are, hashes of other names, the same in every source; -1 without one."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    names = ["" if name is None or name != name else str(name) for name in values.tolist()]
    hashes = {name: zlib.crc32(name.encode()) for name in set(names)} | {"": -1}
    return np.array([hashes[name] for name in names], dtype=np.int64)


def cut(identity: np.ndarray, time: np.ndarray | None, gap: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut rows into recordings: where the identity changes, where time steps back, and at large gaps.

    Rows that are in no order at all (time steps back in more than one of twenty) are sorted.

    Args:
        identity: (R,) whose row it is.
        time: (R,) seconds, or None.
        gap: in median steps; 0 for none.

    Returns:
        (R,) the rows in their new order, (M + 1,) bounds of the recordings, and how many cuts were gaps.
    """
    order = np.argsort(identity, kind="stable")
    change = np.diff(identity[order]) != 0
    gaps = np.zeros_like(change)
    if time is not None and len(time) > 1:
        back = (np.diff(time[order]) < 0) & ~change
        if back.sum() * _ROWS > len(time):
            order = np.lexsort((time, identity))
            back = np.zeros_like(change)
        step = np.diff(time[order])
        forward = step[(step > 0) & ~change]
        if gap and len(forward):
            gaps = (step > gap * np.median(forward)) & ~change & ~back
        change = change | back | gaps
    bounds = np.concatenate([[0], np.flatnonzero(change) + 1, [len(order)]])
    return order, bounds, int(gaps.sum())
