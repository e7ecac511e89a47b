"""What the columns of a table are, and how they become fields: one number each, a value or the number of a category.

A column is what the user sees. A field is what a network sees: a number or a boolean or a category is one field, a date
is several (its day as a number, its month, weekday and hour as categories), a text is a few hashed features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree.data import columns as col
from labelfree.data import written
from labelfree.data.tables import Rows
from labelfree.errors import LabelfreeError

Kind = Literal["number", "boolean", "category", "date", "text"]
#: Words that stand for a missing value.
MISSING = ("", "?", "-", "na", "n/a", "n.a.", "#n/a", "nan", "null", "none", "nil", "missing", "unknown")
#: Features that a text is hashed into, and the share of its values that hold several words.
TEXT_FIELDS, WORDY = 8, 0.3
#: Shares of distinct values: almost all name the rows; more than half are no categories, where they are words.
NAMING, MANY = 0.95, 0.5
#: Larger numbers are taken for this one: the difference of two is still a float32.
LARGEST = 1e38
#: Why a column is left out that is used where it is named.
BY_NAME = ("identifier", "numbers the rows", "named like a label")
#: Fewer rows than this say nothing about identifiers.
FEW_ROWS = 20
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Column:
    """A column that the encoder sees.

    Attributes:
        name: in the table.
        kind: of its values.
        values: the categories that are known, the most frequent first.
        hours: whether a date has times of the day.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    hours: bool = False

    def fields(self) -> list[Field]:
        """Its fields, in the order in which `encode` gives them."""
        if self.kind == "number":
            return [Field(self.name, self.name)]
        if self.kind in ("boolean", "category"):
            return [Field(self.name, self.name, self.values)]
        if self.kind == "text":
            return [Field(f"{self.name} #{number}", self.name) for number in range(TEXT_FIELDS)]
        parts = [
            Field(self.name, self.name),
            Field(f"{self.name}: month", self.name, tuple(str(month) for month in range(1, 13))),
            Field(f"{self.name}: weekday", self.name, _WEEKDAYS),
        ]
        hour = Field(f"{self.name}: hour", self.name, tuple(str(hour) for hour in range(24)))
        return [*parts, hour] if self.hours else parts

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "values": list(self.values)}


@dataclass(frozen=True)
class Field:
    """One number of a row; `values` names the categories (code 1 is the first, 0 is any other), empty for a number."""

    name: str
    column: str
    values: tuple[str, ...] = ()


def column_of(state: Mapping[str, Any]) -> Column:
    """The column that `Column.to_json` described."""
    return Column(**{**state, "values": tuple(state["values"])})


@dataclass(frozen=True)
class Wanted:
    """What the user says about columns.

    Attributes:
        columns: those to use; empty for all that are worth it.
        exclude: those to leave out.
        numbers, categories: those whose kind is known.
        most_values: categories that a column keeps.
    """

    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    most_values: int = 256


@dataclass(frozen=True)
class Found:
    """Columns that are used, words about some of them, and why others are left out."""

    columns: list[Column]
    notes: dict[str, str]
    left_out: dict[str, str]


class Unused(Exception):
    """A column that nothing can be learnt from; the message says why."""


def find_columns(rows: Rows, wanted: Wanted) -> Found:
    """Type every column of a table.

    Raises:
        LabelfreeError: a column that was named is not there, or fewer than two can be used.
    """
    found = typed_columns(rows, wanted)
    if len(found.columns) < 2:
        raise _too_few(rows, found)
    return found


def typed_columns(rows: Rows, wanted: Wanted) -> Found:
    """As `find_columns`, however few can be used. Raises LabelfreeError where a column that was named is not there."""
    for key in ("columns", "exclude", "numbers", "categories"):
        require(rows, getattr(wanted, key), key)
    left = dict.fromkeys(wanted.exclude, "excluded")
    asked = [name for name in wanted.columns or rows.names if name not in left]
    named = {*wanted.columns, *wanted.numbers, *wanted.categories}
    axes = [name for name in rows.names if col.plain(name) in col.AXES]
    numeric = col.numeric_names(col.with_numbers(rows.read(axes))) if len(axes) > 2 else []
    columns: list[Column] = []
    notes: dict[str, str] = {}
    for name, values in rows.columns(asked):
        try:
            if name not in named and col.called_like_label(name, numeric):
                raise Unused("named like a label")
            column, note = _typed(name, values, wanted, name in named)
        except Unused as reason:
            left[name] = str(reason)
            continue
        columns.append(column)
        notes |= {name: note} if note else {}
    return Found(columns, notes, left)


def _too_few(rows: Rows, found: Found) -> LabelfreeError:
    """Why fewer than two columns are not enough, and which could be added by naming them."""
    least = "and a table takes at least two, which can say something of each other."
    if len(rows.names) < 2:
        return LabelfreeError(
            f"{rows.what} has one column, '{rows.names[0]}', {least}" if rows.names else f"{rows.what} has no columns.",
            "Numbers that follow each other in time are --modality series, texts are --modality text.",
        )
    used = [column.name for column in found.columns]
    usable = [*used, *(name for name, reason in found.left_out.items() if reason.startswith(BY_NAME))]
    why = "; ".join(f"{name}: {reason}" for name, reason in list(found.left_out.items())[:5])
    has = f"{len(used) or 'no'} column{'' if len(used) == 1 else 's'} to learn from" + (f" ({why})" if why else "")
    remedy = f"Name those to use nevertheless: columns={','.join(usable[:5])}." if len(usable) > 1 else "Add columns."
    return LabelfreeError(f"{rows.what} has {has}, {least}", remedy)


def require(rows: Rows, names: Sequence[str], what: str) -> None:
    """Raises LabelfreeError where a column is missing, naming what `what` asked for."""
    col.require(pa.table({name: pa.nulls(0) for name in rows.names}), names, what)


def _typed(name: str, values: pa.ChunkedArray, wanted: Wanted, named: bool) -> tuple[Column, str]:
    """The column and a word about it. Raises Unused with the reason why it is none."""
    if name in wanted.numbers:
        return Column(name, "number"), ""
    if name in wanted.categories:
        return _category(name, words(values), wanted.most_values)
    kind = values.type
    if pa.types.is_nested(kind) or _is_binary(kind):
        raise Unused(f"{kind} is no single value")
    if values.null_count == len(values):
        raise Unused("holds no value")
    if pa.types.is_dictionary(kind) and col.is_number(kind.value_type):  # who keeps numbers so says that they are codes
        return _category(name, words(values), wanted.most_values)
    if col.is_number(kind):
        return _numeric(name, values, values, named), ""
    if col.is_moment(kind):
        return _date(name, values), ""
    if pa.types.is_boolean(kind):
        return _boolean(name, values), ""
    return _from_words(name, words(values), wanted, named)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _numeric(name: str, values: pa.ChunkedArray, given: pa.ChunkedArray, named: bool) -> Column:
    """A column of numbers, `given` so or as words. Raises Unused with the reason why it is none."""
    known = col.numbers(pa.table({name: values}), name)
    known = known[~np.isnan(known)]
    if not len(known):
        raise Unused("holds no value")
    low, high = known.min(), known.max()
    if low == high and len(known) == len(values):
        raise Unused("constant")
    if low == high or (low == 0 and high == 1 and bool(((known == 0) | (known == 1)).all())):
        return _boolean(name, given)
    if not named and pa.types.is_integer(values.type) and len(known) >= FEW_ROWS:
        steps = np.diff(known)
        if len(known) == len(values) and bool((steps == 1).all()):
            raise Unused("numbers the rows")
        if is_identity(name) and len(np.unique(known)) >= NAMING * len(known):
            raise Unused("identifier")
    return Column(name, "number")


def is_identity(name: str) -> bool:
    """Whether a column is called like the name of a thing."""
    spelt = col.plain(name)
    return spelt in col.IDENTITY_NAMES or spelt.rpartition("_")[2] in ("id", "uuid", "guid", "key", "hash")


def _boolean(name: str, given: pa.ChunkedArray) -> Column:
    spelt = words(given)
    values = tuple(sorted(pc.unique(spelt.drop_null()).to_pylist()))
    if len(values) < 2 and not spelt.null_count:
        raise Unused("constant")
    return Column(name, "boolean", values)


def _date(name: str, values: pa.ChunkedArray) -> Column:
    moments = _seconds(name, values)
    known = moments[~np.isnan(moments)]
    if not len(known) or (known.min() == known.max() and len(known) == len(moments)):
        raise Unused("constant" if len(known) else "holds no value")
    return Column(name, "date", hours=bool((known % 86400 != 0).any()))


def _from_words(name: str, spelt: pa.ChunkedArray, wanted: Wanted, named: bool) -> tuple[Column, str]:
    """A column of text: numbers or dates in disguise, a category, an identifier, or a text proper."""
    known = spelt.drop_null()
    if not len(known):
        raise Unused("holds no value")
    distinct = pc.count_distinct(known).as_py()
    if (numbers := written.numbers(spelt)) is not None:
        bad = numbers.null_count - spelt.null_count
        if not bad or distinct > min(col.CATEGORIES, MANY * len(known)):  # else codes, some of which are numbers
            return _numeric(name, numbers, spelt, named), _note("numbers", bad)
    if (moments := written.dates(known)) is not None:
        return _date(name, spelt), _note("dates", int(np.isnan(moments).sum()), written.order_of_dates(known))
    wordy = pc.mean(pc.cast(pc.match_substring_regex(known, r"\S\s+\S"), pa.float64())).as_py()
    enough = len(known) >= FEW_ROWS
    if enough and wordy >= WORDY and distinct > MANY * len(known):
        return Column(name, "text"), ""
    if enough and not named and distinct >= NAMING * len(known):
        raise Unused("identifier: nearly every row has another value")
    return _category(name, spelt, wanted.most_values)


def _note(what: str, bad: int, order: str = "") -> str:
    note = f"{what} written as text" + (f" as {order}" if order else "")
    return note + (f", {bad:,} of them unreadable" if bad else "")


def _category(name: str, spelt: pa.ChunkedArray, most: int) -> tuple[Column, str]:
    counts = pc.value_counts(spelt.drop_null())
    names, sizes = counts.field("values").to_pylist(), counts.field("counts").to_numpy()
    if len(names) < 2 and not spelt.null_count:
        raise Unused("constant")
    order = sorted(range(len(names)), key=lambda i: (-int(sizes[i]), names[i]))
    values = tuple(names[i] for i in order[:most])
    note = f"{most:,} of {len(names):,} values are told apart" if len(names) > most else ""
    return Column(name, "boolean" if len(names) <= 2 else "category", values), note


# ---- values


def words(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """(R,) strings, null where missing; 3 and 3.0 and " 3" are the same."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = pc.cast(values, kind.value_type)
    if pa.types.is_floating(kind):
        whole = pc.all(pc.fill_null(pc.equal(values, pc.round(values)), True)).as_py()
        values = pc.if_else(pc.is_finite(values), values, None)
        values = pc.cast(values, pa.int64()) if whole and _is_small(values) else values
    spelt = pc.utf8_trim_whitespace(pc.cast(values, pa.string()))
    missing = pc.is_in(pc.utf8_lower(spelt), value_set=pa.array(MISSING))
    return pc.if_else(missing, pa.scalar(None, pa.string()), spelt)


def _is_small(values: pa.ChunkedArray) -> bool:
    ends = pc.min_max(values).as_py()
    return all(end is None or abs(end) < 2**53 for end in ends.values())


def _seconds(name: str, values: pa.ChunkedArray) -> np.ndarray:
    """(R,) float64 seconds, NaN where missing or unreadable. Raises LabelfreeError where most are no dates."""
    moments = values if col.is_moment(values.type) else words(values)
    if moments.null_count == len(moments):
        return np.full(len(moments), np.nan)
    found = col.dates(moments)
    if found is None:
        raise _other_kind(name, values, "dates")
    return found


def _other_kind(name: str, values: pa.ChunkedArray, expected: str) -> LabelfreeError:
    return LabelfreeError(
        f"Column '{name}' holds {values.type}, most of which are no {expected}.",
        f"Give {expected}, or train with categories={name}.",
    )


def encode(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    """(R, fields) float32 of a column: values, codes of categories (0 where unseen), NaN where missing or unreadable.

    Raises:
        LabelfreeError: numbers or dates are expected, and most of what is there are none.
    """
    return np.asarray(_ENCODERS[column.kind](column, values), dtype=np.float32).reshape(len(values), -1)


def _encode_number(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    found = values
    if not (col.is_number(values.type) or pa.types.is_null(values.type)):
        plain = pc.cast(values, pa.int8()) if pa.types.is_boolean(values.type) else written.numbers(words(values))
        if plain is None:
            raise _other_kind(column.name, values, "numbers")
        found = plain
    return col.numbers(pa.table({"": found}), "").clip(-LARGEST, LARGEST)


def _encode_category(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    spelt, known = words(values), pa.array(column.values, pa.string())
    if {value.lower() for value in column.values} <= {"true", "false"}:  # spelt otherwise where an odd cell is beside
        spelt, known = pc.utf8_lower(spelt), pc.utf8_lower(known)
    places = pc.fill_null(pc.index_in(spelt, value_set=known), -1)
    codes = np.asarray(places.to_numpy(), dtype=np.float32) + 1
    codes[np.asarray(pc.is_null(spelt).to_numpy(), dtype=bool)] = np.nan
    return codes


def _encode_date(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    moments = _seconds(column.name, values)
    missing = np.isnan(moments)
    days = np.where(missing, 0.0, moments) / 86400
    whole = np.floor(days).astype("datetime64[D]")
    month = whole.astype("datetime64[M]").astype(np.int64) % 12
    weekday = (whole.astype(np.int64) + 3) % 7  # the first of January 1970 was a Thursday
    parts = [days, month + 1, weekday + 1]
    if column.hours:
        parts.append(np.floor(days % 1 * 24 + 1e-9) + 1)
    found = np.stack(parts, axis=1).astype(np.float64)
    found[missing] = np.nan
    return found


def _encode_text(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    from sklearn.feature_extraction.text import HashingVectorizer

    texts = words(values).to_pylist()
    hashing = HashingVectorizer(n_features=TEXT_FIELDS, analyzer="char_wb", ngram_range=(3, 3), dtype=np.float32)
    found = hashing.transform("" if text is None else text for text in texts).toarray()
    found[[text is None for text in texts]] = np.nan
    return found


_ENCODERS: Mapping[Kind, Callable[[Column, pa.ChunkedArray], np.ndarray]] = {
    "number": _encode_number,
    "boolean": _encode_category,
    "category": _encode_category,
    "date": _encode_date,
    "text": _encode_text,
}
