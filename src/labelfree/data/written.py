"""Numbers and dates written as text, in the forms of several countries; a cell that holds none costs itself alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HEAD = 1000  #: Cells that are tried before a whole column is read as something.
_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_THOUSANDS, _DECIMAL_COMMA = r"^-?\d{1,3}(,\d{3})+(\.\d*)?$", r"^-?\d*,(\d{1,2}|\d{4,})$"
_MONTH_FIRST, _DAY_FIRST = "%m/%d/%Y", "%d/%m/%Y"
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", _MONTH_FIRST, _DAY_FIRST)
_FRACTION, _ZONE = r"\.\d+", r"[+-]\d\d:?(?:\d\d)?"


def numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The cells that are numbers, null elsewhere; None where most are none. Whole numbers where all of them are.

    Signs of currencies and per cent are left out, and commas between thousands where no cell has a comma for decimals.
    """
    if pc.all(pc.is_null(_spelt_numbers(column.drop_null().slice(0, HEAD)))).as_py():
        return None
    if (found := _cast(column)) is not None:  # as nearly always, and much faster
        return found
    spelt = _spelt_numbers(column)
    return _cast(spelt) if _mostly(spelt, column) else None


def _cast(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    for kind in (pa.int64(), pa.float64()):
        try:
            return pc.cast(column, kind)
        except pa.ArrowInvalid:
            continue
    return None


def _spelt_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    bare = pc.replace_substring_regex(column, r"^\s*\+?(-?)[$€£¥]?\s*(-?[\d.,][\d.,eE+-]*)\s*[$€£¥%]?\s*$", r"\1\2")
    if not pc.any(pc.match_substring_regex(bare, _DECIMAL_COMMA)).as_py():
        grouped = pc.match_substring_regex(bare, _THOUSANDS)
        bare = pc.if_else(grouped, pc.replace_substring(bare, ",", ""), bare)
    return pc.if_else(pc.match_substring_regex(bare, _NUMBER), bare, None)


def _mostly(found: pa.ChunkedArray, column: pa.ChunkedArray) -> bool:
    """Whether at least half of the cells that hold something could be read."""
    return 2 * (found.null_count - column.null_count) <= len(column) - column.null_count


def dates(column: pa.ChunkedArray) -> np.ndarray | None:
    """(R,) float64 seconds since 1970 (UTC where a cell says its zone), NaN where a cell holds no date; None where
    most do.
    """
    days, _ = _days(column)
    if not days:
        return None
    spelt = _plain(column)
    moments = pc.coalesce(*[_strptime(spelt, day) for day in days])
    if not _mostly(moments, column):
        return None
    whole = pc.cast(pc.cast(moments, pa.int64()), pa.float64()).to_numpy() / 1e6
    fraction = pc.cast(_end(column, rf"(?P<end>{_FRACTION})\s*(?:Z|UTC|{_ZONE})?"), pa.float64()).to_numpy()
    return np.asarray(whole + np.nan_to_num(fraction) - _offsets(column), dtype=np.float64)


def order_of_dates(column: pa.ChunkedArray) -> str:
    """Whether the month or the day comes first, where a form of dates leaves it open; else ""."""
    days, open_ = _days(column)
    words = {_MONTH_FIRST: "month/day/year", _DAY_FIRST: "day/month/year"}
    found = next((word for day, word in words.items() if day in days), "")
    return f"{found} (the days do not tell)" if open_ else found


def _days(column: pa.ChunkedArray) -> tuple[list[str], bool]:
    """The forms of days that are met, and whether a month that comes first could as well be a day."""
    head = _plain(column.drop_null().slice(0, HEAD))
    met = [day for day in _DAYS if _strptime(head, day).null_count < len(head)]
    if not {_MONTH_FIRST, _DAY_FIRST} <= set(met):
        return met, False
    for spelt in (head, _plain(column)):
        month, day = (_strptime(spelt, form).null_count for form in (_MONTH_FIRST, _DAY_FIRST))
        if month != day:
            break
    met.remove(_DAY_FIRST if month <= day else _MONTH_FIRST)
    return met, month == day


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Days, or days and times to the second with a blank between, AM or PM last; null without a year of four digits."""
    spelt = pc.replace_substring_regex(column, rf"(:\d\d)(?:{_FRACTION})?\s*(?:Z|UTC|{_ZONE})?\s*$", r"\1")
    for half in ("AM", "PM"):
        spelt = pc.replace_substring_regex(spelt, rf"(?i)(:\d\d)\s*{half[0]}\.?M\.?\s*$", rf"\1 {half}")
    spelt = pc.replace_substring_regex(spelt, r"(\d)[T ]\s*(\d\d?:\d\d)( [AP]M)?$", r"\1 \2:00\3")
    spelt = pc.replace_substring_regex(spelt, r"(\d)T(\d)", r"\1 \2")
    spelt = pc.replace_substring_regex(spelt, r"^\s*(\d\d?)-(\d\d?)-(\d{4})", r"\1/\2/\3")
    return pc.if_else(pc.match_substring_regex(spelt, r"\d{4}"), spelt, None)


def _strptime(spelt: pa.ChunkedArray, day: str) -> pa.ChunkedArray:
    forms = [f"{day} %H:%M:%S", day]
    if pc.any(pc.ends_with(spelt, "M")).as_py():
        forms.append(f"{day} %I:%M:%S %p")
    return pc.coalesce(*[pc.strptime(spelt, format=form, unit="us", error_is_null=True) for form in forms])


def _offsets(column: pa.ChunkedArray) -> np.ndarray:
    """(R,) seconds that the zone of each cell is ahead of UTC; 0 where it names none."""
    zones = _end(column, rf"(?:{_FRACTION})?\s*(?P<end>{_ZONE})")
    named = pc.unique(zones)
    seconds = [0 if zone is None else _offset(zone) for zone in named.to_pylist()]
    return np.array(seconds, dtype=np.float64)[pc.index_in(zones, value_set=named).to_numpy()]


def _offset(zone: str) -> int:
    return int(zone[0] + "60") * (int(zone[1:3]) * 60 + int(zone[3:].lstrip(":") or 0))


def _end(column: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """What the group `end` of a pattern is in the cells that end in minutes or seconds and in that; else null."""
    return pc.struct_field(pc.extract_regex(column, rf":\d\d{pattern}\s*$"), "end")
