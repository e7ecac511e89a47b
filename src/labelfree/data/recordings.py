"""Series, read from arrays, tables and folders into one long table of rows that recordings and windows are cut from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labelfree.data import columns as col
from labelfree.data.batch import Unreadable
from labelfree.data.columns import ReadOptions
from labelfree.data.delimited import nameless
from labelfree.data.sources import (
    ARRAYS,
    TABLES,
    column_values,
    frame,
    hash_files,
    hash_of,
    load_arrays,
    name_below,
    read_table,
    share_of,
    sidecar,
)
from labelfree.errors import LabelfreeError
from labelfree.files import existing

FILES = (*ARRAYS, *TABLES)
#: What arrays are called that hold many series each, some to learn from and others to judge by.
PARTS = ("train", "test", "val", "valid", "validation", "dev")


@dataclass(frozen=True)
class Recordings:
    """Series, one after another.

    Attributes:
        values: (R, C) float32 rows of all recordings, NaN where missing.
        spans: (M, 2) int64 first and last row (exclusive) of each recording, padding at its end left out.
        channels: names of the C channels.
        time: (R,) float64 seconds, or None.
        rows: columns with a value a row, by name.
        columns: columns with a value a recording, by name.
        group: the column that says whose recording it is, or "".
        names: of the recordings, or empty.
        whole: whether the source gave each series as one item (an array, a row, so that it need not be cut).
        facts: words about what was found.
        unreadable: what could not be read.
        fingerprint: hash of the source's content.
    """

    values: np.ndarray
    spans: np.ndarray
    channels: tuple[str, ...]
    time: np.ndarray | None = None
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    group: str = ""
    names: Sequence[str] = ()
    whole: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    unreadable: Sequence[Unreadable] = ()
    fingerprint: str = ""


def read_recordings(source: Any, options: ReadOptions) -> Recordings:
    """Read a source of series.

    Args:
        source: a path (array file, table, folder of them), an array (N, T[, C]) or (T,), a list of arrays (T[, C]) of
            different lengths, a dictionary of arrays (as an .npz file), an Arrow table or a data frame.
        options: which columns are what.

    Raises:
        LabelfreeError: nothing there, empty, or not series.
    """
    if isinstance(source, str | Path):
        path = existing(source)
        return _from_folder(path, options) if path.is_dir() else _from_file(path, options)
    if isinstance(source, Mapping):
        return _from_arrays({name: np.asarray(array) for name, array in source.items()}, options, "the dictionary")
    if isinstance(source, list | tuple):
        return _from_list(source, options)
    if (table := frame(source)) is not None:
        return _from_table(table, options, "the table" if table is source else "the frame")
    return _from_arrays({"": np.asarray(source)}, options, "the array")


# ---- arrays


def _from_arrays(arrays: Mapping[str, np.ndarray], options: ReadOptions, what: str) -> Recordings:
    name = _series_array(arrays, what)
    series = arrays[name]
    if series.ndim == 1:
        series = series[None]
    if series.ndim == 2:
        series = series[:, :, None]
    count, length, width = series.shape
    if not count or not length or not width:
        raise LabelfreeError(f"{what} is empty: shape {arrays[name].shape}.", "Expected (series, steps[, channels]).")
    others = {key: a for key, a in arrays.items() if key != name and a.ndim == 1 and len(a) == count}
    time = next(
        (a for key, a in arrays.items() if col.plain(key) in col.TIME_NAMES and a.shape == (count, length)), None
    )
    channels = _check_count(tuple(str(c) for c in range(width)) if width > 1 else ("value",), options, what)
    values = _clean(series.reshape(count * length, width))
    return Recordings(
        values=values,
        spans=_trim(values, np.arange(count + 1) * length),
        channels=channels,
        time=None if time is None else time.reshape(-1).astype(np.float64),
        columns=others,
        group=_known_group(options, others, what),
        whole=arrays[name].ndim > 1,
        facts={"read as": "series × steps" + (" × channels" if width > 1 else "")},
        fingerprint=hash_of(name, _sketch(values), *others, count, length),
    )


def _series_array(arrays: Mapping[str, np.ndarray], what: str) -> str:
    fitting = [k for k, a in arrays.items() if a.ndim in (1, 2, 3) and a.dtype.kind in "fiu"]
    fitting = [k for k in fitting if col.plain(k) not in col.LABEL_NAMES | col.TIME_NAMES]
    named = [k for k in fitting if k.lower() in ("", "x", "data", "series", "values")]
    deep = [k for k in fitting if arrays[k].ndim > 1]
    if not named + deep + fitting:
        found = ", ".join(f"{k or 'array'} {a.dtype} {a.shape}" for k, a in arrays.items())
        raise LabelfreeError(f"{what} holds no series: expected numbers (series, steps[, channels]), found {found}.")
    return (named + deep + fitting)[0]


def _from_list(series: Sequence[Any], options: ReadOptions) -> Recordings:
    arrays = [np.asarray(one) for one in series]
    arrays = [a[:, None] if a.ndim == 1 else a for a in arrays]
    widths = {a.shape[1] if a.ndim == 2 else -1 for a in arrays}
    if not arrays or widths == {-1} or len(widths) > 1:
        shapes = sorted({str(a.shape) for a in arrays})[:5]
        raise LabelfreeError(
            f"The list holds no series: expected arrays (steps[, channels]), found {', '.join(shapes) or 'nothing'}."
        )
    width = widths.pop()
    if not any(a.size for a in arrays):
        raise LabelfreeError(f"The list holds no values: its {len(arrays)} series are empty.", "Give steps.")
    values = _clean(np.concatenate(arrays))
    bounds = np.concatenate([[0], np.cumsum([len(a) for a in arrays])])
    names = tuple(str(c) for c in range(width)) if width > 1 else ("value",)
    return Recordings(
        values=values,
        spans=_trim(values, bounds),
        channels=_check_count(names, options, "the list"),
        facts={"read as": "a list of series"},
        fingerprint=hash_of(_sketch(values), bounds),
    )


def _check_count(names: tuple[str, ...], options: ReadOptions, what: str) -> tuple[str, ...]:
    """The names that the encoder knows the channels by, if as many came."""
    if options.channels and len(options.channels) != len(names):
        raise LabelfreeError(
            f"{what} has {len(names)} channels, but the encoder was trained on {len(options.channels)}: "
            f"{', '.join(options.channels)}."
        )
    return options.channels or names


def _known_group(options: ReadOptions, known: Mapping[str, Any], what: str) -> str:
    if options.group and options.group not in known:
        raise LabelfreeError(f"group names '{options.group}', but {what} has {', '.join(known) or 'no columns'}.")
    return options.group


def _clean(values: np.ndarray) -> np.ndarray:
    """float32 with infinities as NaN."""
    with np.errstate(over="ignore"):
        cleaned = np.array(values, dtype=np.float32, order="C")
    cleaned[~np.isfinite(cleaned)] = np.nan
    return cleaned


def _trim(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(M, 2) spans between bounds, without the steps at the end where every channel is missing (padding)."""
    known = ~np.isnan(values).all(axis=1)
    last = np.maximum.accumulate(np.concatenate([[0], np.where(known, np.arange(len(known)) + 1, 0)]))
    stops = np.maximum(last[bounds[1:]], bounds[:-1])
    return np.stack([bounds[:-1], stops], axis=1).astype(np.int64)


def _sketch(values: np.ndarray) -> np.ndarray:
    """About a million of the values, evenly spread: what a fingerprint of a large array looks at."""
    return values.reshape(-1)[:: max(1, values.size // 1_000_000)]


# ---- tables


def _from_table(table: pa.Table, options: ReadOptions, what: str, recording: bool = False) -> Recordings:
    """A table; `recording` where it is known to be one recording of many, hence long."""
    if not len(table):
        raise LabelfreeError(f"{what} has no rows.", "Name a table with measurements.")
    measured = col.with_numbers(table, (*options.columns, *options.channels))
    layout, why = ("long", "one file a recording") if recording else _layout(measured, options)
    if layout == "wide":
        found = _wide(table, measured, options, what)
    else:
        found = _long(table, measured, options, what, recording and not (options.columns or options.channels))
    facts = {"read as": f"{layout} table ({why})", **found.facts}
    if as_text := col.words_of_numbers(table, measured, found.channels):
        facts["numbers written as text"] = as_text
    return Recordings(**{**vars(found), "facts": facts})


def _layout(table: pa.Table, options: ReadOptions) -> tuple[str, str]:
    if options.layout != "auto":
        return options.layout, "as told"
    if options.channels and not _unnamed(options.channels):
        return "long", "as the encoder was trained"
    if col.looks_wide(table):
        return "wide", "columns are numbered through"
    time = col.time_column(table, options)
    if time:
        return "long", f"'{time}' holds times"
    if col.identity_columns(table, options):
        return "long", f"'{col.identity_columns(table, options)[0]}' repeats"
    if len(col.numeric_names(table)) >= 24 and not col.time_column(table, options, ordered=False):
        return "wide", "many numeric columns and none of times"
    return "long", "a row a time step"


def _unnamed(channels: Sequence[str]) -> bool:
    """Whether channels have the names that this file gives where a source has none."""
    return channels == ("value",) or list(channels) == [str(number) for number in range(len(channels))]


def _wide(table: pa.Table, measured: pa.Table, options: ReadOptions, what: str) -> Recordings:
    """A row a series; `measured` is the table with all its numbers."""
    if options.group:
        col.require(table, [options.group], "group")
    own, suspects = _without_channels(options), _beside_steps(table)
    names, left = col.choose_channels(measured, [options.group], own, suspects=suspects)
    matrix = np.stack([col.numbers(measured, name) for name in names], axis=1)
    others = {name: column_values(table, name) for name in table.column_names if name not in names}
    found = _from_arrays({"": matrix, **others}, options, what)
    facts = {"left out": _words(left)} if left else {}
    return Recordings(**{**vars(found), "facts": facts})


def _beside_steps(table: pa.Table) -> list[str]:
    """Columns of a wide table that may be a label: not numbered; or, without a header, the first and the last."""
    names = table.column_names
    if nameless(names):
        return [names[0], names[-1]]
    return [name for name in names if not name[-1:].isdigit()]


def _without_channels(options: ReadOptions) -> ReadOptions:
    """Where the encoder's channels have no names of their own, columns are chosen as if there were no encoder."""
    return ReadOptions(**{**vars(options), "channels": ()})


def _long(table: pa.Table, measured: pa.Table, options: ReadOptions, what: str, undecided: bool = False) -> Recordings:
    """A row a time step; `measured` is the table with all its numbers. Where it is `undecided` which whole numbers are
    codes, they are channels and stay columns.
    """
    clock = col.time_column(table, options)
    identities = [name for name in col.identity_columns(table, options) if name != clock]
    time = col.seconds(table.column(clock)) if clock else None
    order, bounds, gaps = col.cut(col.identity_of(table, identities), time, options.gap)
    taken = [*identities, *([clock] if clock else [])]
    constant = _constant_inside(measured, taken, order, bounds) if len(bounds) > 2 else {}
    free = _unnamed(options.channels) and not set(options.channels) <= set(table.column_names)
    own = _without_channels(options) if free else options
    names, left = col.choose_channels(measured, taken, own, constant, () if undecided else None)
    sure = [name for name in names if not (undecided and col.is_whole(measured, name))]
    channels = _check_count(tuple(names), options, what) if free else tuple(names)
    values = _clean(np.stack([col.numbers(measured, name) for name in names], axis=1)[order])
    facts = {"left out": _words(left)} if left else {}
    if clock and time is not None:
        dated = col.dates(table.column(clock)[:1000]) is not None
        facts["time"] = _time_words(clock, time[order], bounds, gaps, " s" if dated else "")
        facts["time"] += f"; read as {form}" if (form := col.order_of_dates(table.column(clock))) else ""
    elif untold := col.unread_times(table, (*taken, *options.columns, *options.channels)):
        facts["time"] = untold
    return Recordings(
        values=values,
        spans=_trim(values, bounds),
        channels=channels,
        time=None if time is None else time[order],
        rows={name: column_values(table, name)[order] for name in table.column_names if name not in (*sure, clock)},
        group=identities[0] if identities else "",
        whole=False,
        facts=facts,
        fingerprint=hash_of(_sketch(values), bounds, *table.column_names),
    )


def _constant_inside(table: pa.Table, taken: Sequence[str], order: np.ndarray, bounds: np.ndarray) -> dict[str, bool]:
    found = {}
    for name in col.numeric_names(table):
        if name in taken:
            continue
        values = col.numbers(table, name)[order]
        change = values[1:] != values[:-1]
        change[bounds[1:-1] - 1] = False
        found[name] = not change.any() and len(np.unique(values)) > 1
    return found


def _words(left: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in left.items())


def _time_words(name: str, time: np.ndarray, bounds: np.ndarray, gaps: int, unit: str) -> str:
    steps = np.diff(time)
    inside = np.ones(len(steps), dtype=bool)
    inside[bounds[1:-1] - 1] = False
    known = steps[inside & ~np.isnan(steps)]
    step = np.median(known) if len(known) else float("nan")
    words = f"'{name}', a step every {step:.6g}{unit}"
    if untimed := int(np.isnan(time).sum()):
        words += f"; {untimed:,} row{'' if untimed == 1 else 's'} without one"
    return words + (f"; cut at {gaps} gaps" if gaps else "")


# ---- files


def _from_file(path: Path, options: ReadOptions, recording: bool = False) -> Recordings:
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        found = _from_arrays(_one_recording(path) if recording else load_arrays(path), options, f"'{path}'")
    elif suffix in TABLES:
        ragged: dict[int, str] = {}
        found = _from_table(read_table(path, ragged=ragged), options, f"'{path}'", recording)
        if ragged:
            facts = {**found.facts, "rows of missing values": f"{len(ragged):,}, with too many or too few cells"}
            found = Recordings(**{**vars(found), "facts": facts})
    else:
        raise LabelfreeError(f"'{path}' is not a source of series.", f"Expected {', '.join(FILES)}, or a folder.")
    return Recordings(**{**vars(found), "fingerprint": hash_of(hash_files([path], path), found.fingerprint)})


def _one_recording(path: Path) -> dict[str, np.ndarray]:
    """A file's array (T[, C]) as one series (1, T, C)."""
    arrays = load_arrays(path)
    name = _series_array(arrays, f"'{path}'")
    if arrays[name].ndim == 3:
        raise LabelfreeError(f"'{path}' holds many series {arrays[name].shape}.", "Name the file itself.")
    return {name: arrays[name].reshape(1, len(arrays[name]), -1)}


def _from_folder(folder: Path, options: ReadOptions) -> Recordings:
    paths, _ = share_of(folder, FILES)
    arrays = [p for p in paths if p.suffix.lower() in ARRAYS]
    tables = [p for p in paths if p.suffix.lower() in TABLES]
    paths = arrays if arrays and len(tables) <= 1 else paths
    if not paths:
        raise LabelfreeError(f"'{folder}' holds no series.", f"Expected files that end in {', '.join(FILES)}.")
    if len(paths) == 1:
        return _from_file(paths[0], options)
    if arrays and len({path.parent for path in paths}) == 1 and all(path.stem.lower() in PARTS for path in paths):
        held = " and ".join(path.name for path in paths)
        raise LabelfreeError(f"'{folder}' holds {held}: parts of a data set.", "Name the one to learn from.")
    parts, names, unreadable = [], [], []
    for number, path in enumerate(paths):
        name = name_below(folder, path)
        try:
            parts.append(_from_file(path, options, recording=True))
            names.append(name)
        except LabelfreeError as error:
            unreadable.append(Unreadable(number, name, error.problem))
    parts = _without_codes(parts)
    _refuse_mixture(folder, parts, names, unreadable)
    beside = sidecar(folder, names)
    columns = {"folder": np.array([Path(name).parent.name for name in names], dtype=object)}
    if beside is not None:
        columns |= {name: column_values(beside, name) for name in beside.column_names}
    joined = _join(parts, names, columns, options)
    fingerprint = hash_of(hash_files(paths, folder), joined.fingerprint)
    return Recordings(**{**vars(joined), "unreadable": unreadable, "fingerprint": fingerprint})


def _without_codes(parts: Sequence[Recordings]) -> list[Recordings]:
    """Files without the channels that are codes of classes: few whole numbers in all files together, beside others."""
    names = {name for part in parts for name in part.channels}
    whole = {name for name in names if all(name in part.rows for part in parts if name in part.channels)}
    codes = {name for name in whole if col.are_few(_together(parts, name))} if whole < names else set()
    return [_decided(part, codes) for part in parts]


def _together(parts: Sequence[Recordings], name: str) -> pa.ChunkedArray:
    """The values of a channel in all files that have it, null where missing."""
    having = [part for part in parts if name in part.channels]
    values = [part.values[:, part.channels.index(name)] for part in having]
    return pa.chunked_array([pa.array(piece, from_pandas=True) for piece in values])


def _decided(part: Recordings, codes: Collection[str]) -> Recordings:
    """A file without the channels that are `codes`; the others are no columns."""
    kept = [place for place, name in enumerate(part.channels) if name not in codes]
    channels, values = tuple(part.channels[place] for place in kept), part.values
    left, facts = {name: col.CODES for name in part.channels if name in codes}, dict(part.facts)
    if left:
        values = values[:, kept]
        facts["left out"] = "; ".join([*filter(None, [facts.get("left out")]), _words(left)])
    spans = _trim(values, np.append(part.spans[:, 0], len(values)))
    rows = {name: column for name, column in part.rows.items() if name not in channels}
    changed = {"values": values, "spans": spans, "channels": channels, "rows": rows, "facts": facts}
    return Recordings(**{**vars(part), **changed})


def _refuse_mixture(folder: Path, parts: list[Recordings], names: list[str], unreadable: list[Unreadable]) -> None:
    if not parts:
        first = unreadable[0]
        raise LabelfreeError(f"None of the {len(unreadable)} files in '{folder}' can be read; {first.reason}")
    for part, name in zip(parts, names, strict=True):
        if part.channels != parts[0].channels:
            raise LabelfreeError(
                f"The files in '{folder}' differ: '{names[0]}' has the channels {', '.join(parts[0].channels)}, "
                f"'{name}' has {', '.join(part.channels)}.",
                "Name the common ones: columns=a,b.",
            )


def _join(
    parts: Sequence[Recordings], names: Sequence[str], columns: dict[str, np.ndarray], options: ReadOptions
) -> Recordings:
    """Recordings of several files, one after another; columns are given a file and spread over its recordings."""
    starts = np.cumsum([0] + [len(part.values) for part in parts])
    pieces = [len(part.spans) for part in parts]
    shared = [key for key in parts[0].rows if all(key in part.rows for part in parts)]
    timed = all(part.time is not None for part in parts)
    rows = {key: np.concatenate([part.rows[key] for part in parts]) for key in shared}
    columns = {key: np.repeat(values, pieces) for key, values in columns.items() if key not in rows}
    group = options.group or next((part.group for part in parts if part.group in rows), "")
    facts = {**parts[0].facts, "read as": f"{len(parts)} files, one a recording"}
    return Recordings(
        values=np.concatenate([part.values for part in parts]),
        spans=np.concatenate([part.spans + start for part, start in zip(parts, starts, strict=False)]),
        channels=parts[0].channels,
        time=np.concatenate([part.time for part in parts if part.time is not None]) if timed else None,
        rows=rows,
        columns=columns,
        group=_known_group(ReadOptions(group=group), {**rows, **columns}, "the folder"),
        names=[name for name, count in zip(names, pieces, strict=True) for _ in range(count)],
        whole=False,
        facts=facts,
        fingerprint=hash_of(*(part.fingerprint for part in parts)),
    )


def majority(values: np.ndarray, start: int, stop: int) -> Any:
    """The most frequent value of values[start:stop]; of equals, the one that sorts first."""
    piece = values[start:stop]
    if len(piece) == 0:
        return values[min(start, len(values) - 1)]
    found, number = col.distinct(piece)
    return found[np.bincount(number).argmax()]
