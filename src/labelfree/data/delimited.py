"""Delimited text (CSV, TSV) as tables: encoding, separator, decimal mark and header are told by its beginning."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import ConvertOptions, InvalidRow, ParseOptions, ReadOptions, read_csv

from labelfree.data import written
from labelfree.data.characters import decode, encoding_of

SUFFIXES = (".csv", ".tsv")
#: Rows that are looked at, and the share of them that must have as many cells as the first.
LOOK_AT, REGULAR = 200, 0.9
#: Words of a cell from which on it may be a text; names of columns have fewer, or are longer than what they name.
SENTENCE = 4
#: Bytes beyond which types are not guessed from the whole.
MOST = 1 << 31
_MISSING = ConvertOptions().null_values  #: Cells that are none in a column of numbers.
_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d+)?|[.,]\d+)([eE][+-]?\d+)?\s*")
_WITH_POINT = re.compile(r"\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*")
_WITH_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
_COMMA_CELL = r"^\s*[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+\s*$"
_THOUSANDS = re.compile(r"\s*[+-]?\d{1,3}(,\d{3})+\s*")
_POINTED = r"^\s*[+-]?[1-9]\d{0,2}(\.\d{3})+\s*$"  #: thousands beside decimal commas


def nameless(names: Sequence[str]) -> bool:
    """Whether columns have the names that they are given where the first row of a file holds none."""
    return list(names) == [f"f{number}" for number in range(len(names))]


@dataclass(frozen=True)
class Form:
    """How a file writes its cells.

    Attributes:
        header: whether its first row holds the names of the columns.
        quotes: whether cells may stand in quotes.
    """

    delimiter: str
    decimal: str = "."
    header: bool = True
    quotes: bool = True


def read_whole(path: Path, head: bytes, ragged: dict[int, str] | None = None) -> pa.Table:
    """A file as a table.

    Args:
        path: the file.
        head: its first bytes, by which its form is told.
        ragged: takes in the numbers of rows that have too many or too few cells, and the words for it, where these are
            to be rows of missing values.

    Raises:
        ValueError, pa.ArrowException: it is no text, or no table.
    """
    form = _form_of(head, path.suffix.lower(), len(head) == path.stat().st_size)
    if encoding_of(head) == "utf-8-sig":
        table = _parse(path, path.stat().st_size, form, ragged)
        with suppress(UnicodeDecodeError):  # of a name
            if table.column_names and not any(map(pa.types.is_binary, table.schema.types)):
                return table  # else a character is none in UTF-8
    content = decode(path.read_bytes()).encode()
    return _parse(content, len(content), form, ragged)


def read_start(head: bytes, suffix: str) -> pa.Table:
    """The whole rows among the first bytes of a file as a table.

    Raises:
        ValueError, pa.ArrowException: it is no text, or its first bytes are no table.
    """
    text, form = decode(head), _form_of(head, suffix, False)
    end = text.rfind("\n") + 1
    while form.quotes and text.count('"', 0, end) % 2:  # within a cell
        end = text.rfind("\n", 0, end - 1) + 1
    content = text[:end].encode()
    return _parse(content, len(content), form, {})


def _parse(source: Path | bytes, size: int, form: Form, ragged: dict[int, str] | None) -> pa.Table:
    """Types are guessed from the first megabyte; all is taken together where that guess turns out to be wrong, or a row
    is longer. Rows of another number of cells are skipped where they have to be.
    """
    block: int | None = None
    odd: dict[int, str] | None = None
    while True:
        try:
            table = _read(source, form, block, odd)
            break
        except pa.ArrowInvalid as error:
            if odd is None and ragged is not None and "columns, got" in str(error):
                odd = {}
            elif block is None and size < MOST and re.search("conversion error|straddling", str(error)):
                block = size + 1
            else:
                raise
    if form.decimal == ",":
        table = _with_points(table)
    if not odd or ragged is None:
        return table
    ragged |= odd
    return _with_gaps(table, list(odd))


def _read(source: Path | bytes, form: Form, block: int | None, odd: dict[int, str] | None) -> pa.Table:
    def skip(row: InvalidRow) -> str:
        assert odd is not None
        odd[row.number - 1 - form.header] = f"{row.actual_columns} cells where {row.expected_columns} are expected"
        return "skip"

    return read_csv(
        source if isinstance(source, Path) else pa.BufferReader(source),
        # one thread knows the numbers of rows
        ReadOptions(use_threads=odd is None, block_size=block, autogenerate_column_names=not form.header),
        ParseOptions(
            delimiter=form.delimiter,
            quote_char='"' if form.quotes else False,
            newlines_in_values=form.quotes,
            invalid_row_handler=None if odd is None else skip,
        ),
        ConvertOptions(decimal_point=form.decimal),
    )


def _with_gaps(table: pa.Table, skipped: list[int]) -> pa.Table:
    """The table with rows of missing values where rows were skipped.

    Raises:
        ValueError: they are so many that it is none.
    """
    total = len(table) + len(skipped)
    if len(skipped) > (1 - REGULAR) * total:
        raise ValueError(f"{len(skipped):,} of its {total:,} rows have another number of cells than the first")
    gone = np.isin(np.arange(total), skipped)
    return table.take(pa.array(np.cumsum(~gone) - 1, mask=gone))


def _with_points(table: pa.Table) -> pa.Table:
    """Numbers with a decimal comma that stand among other cells in a column, as those of other columns are read."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field.name, _pointed(table.column(place)))
    return table


def _pointed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text with the decimal commas of its numbers as points; in a column of numbers also without points between
    thousands, and as numbers where no cell is anything else.
    """
    bare = pc.replace_substring(pc.replace_substring(column, ".", ""), ",", ".")
    decimal, whole = (pc.match_substring_regex(column, form) for form in (_COMMA_CELL, _POINTED))
    changed = pc.if_else(decimal, bare, column)
    known = pc.if_else(pc.is_in(column, pa.array(_MISSING)), None, pc.if_else(whole, bare, changed))
    found = written.numbers(known) if pc.any(pc.or_(decimal, whole)).as_py() else None
    if found is None:
        return changed  # numbers of versions and addresses
    return found if found.null_count == known.null_count else pc.if_else(whole, bare, changed)


def _form_of(head: bytes, suffix: str, whole: bool) -> Form:
    text = decode(head)
    usual = "\t" if suffix == ".tsv" else ","
    rows = {mark: _rows(text, mark, whole) for mark in (usual, *",;\t|".replace(usual, ""))}
    fitting = [mark for mark, found in rows.items() if _splits(found)]
    mark = max(fitting, key=lambda mark: _share_of_numbers(rows[mark]), default=usual)
    decimal = _decimal(rows[mark], mark)
    names = [cell.replace(decimal, ".") for cell in rows[mark][0]] if rows[mark] else []
    header = not (names and (_is_data(names) or _is_text(rows[mark])))
    return Form(mark, decimal, header, not _has_stray_quotes(text, mark, whole))


def _rows(text: str, mark: str, whole: bool) -> list[list[str]]:
    """The first rows that have cells; without the last one where it may have been cut."""
    try:
        found = list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=mark), LOOK_AT))
    except csv.Error:  # a cell of very many characters
        return []
    return [row for row in (found if whole or len(found) == LOOK_AT else found[:-1]) if row]


def _has_stray_quotes(text: str, mark: str, whole: bool) -> bool:
    """Whether quotes are signs like others, as in tables of texts that know no quoting: a single one would swallow all
    rows up to the next. Its line has as many cells as all others have, and as cells in quotes they make no sense.
    """
    end = len(text) if whole else text.rfind("\n") + 1
    lines = [line for line in text[:end].split("\n") if line.strip()]
    alike = len({line.count(mark) for line in lines}) == 1 and mark in lines[0] and '"' not in lines[0]
    if not alike or not any(line.count('"') % 2 for line in lines):
        return False
    try:
        rows = csv.reader(io.StringIO(text[:end], newline=""), delimiter=mark, strict=True)
        return len({len(row) for row in rows if row}) > 1
    except csv.Error:
        return True


def _splits(rows: list[list[str]]) -> bool:
    """Whether a separator cuts the header, and the rows alike."""
    if not rows or len(rows[0]) < 2:
        return False
    return sum(len(row) == len(rows[0]) for row in rows) >= REGULAR * len(rows)


def _share_of_numbers(rows: list[list[str]]) -> float:
    cells = [cell for row in rows for cell in row]
    return sum(bool(_NUMBER.fullmatch(cell)) for cell in cells) / len(cells)


def _decimal(rows: list[list[str]], mark: str) -> str:
    """The comma where it is no separator and numbers have one, but do not look like thousands of an English table."""
    cells = [cell for row in rows for cell in row] if mark != "," else []
    commas = [cell for cell in cells if _WITH_COMMA.fullmatch(cell)]
    points = [cell for cell in cells if _WITH_POINT.fullmatch(cell) and not re.match(_POINTED, cell)]
    if not commas or points:
        return "."
    return "," if mark == ";" or not all(_THOUSANDS.fullmatch(cell) for cell in commas) else "."


def _is_data(names: list[str]) -> bool:
    """Whether all "names" are numbers that do not count through: then the first row is data."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return False
    return numbers != [numbers[0] // 1 + place for place in range(len(numbers))]


def _is_text(rows: list[list[str]]) -> bool:
    """Whether the first row has a text like those below it, and is not the names: in a file of texts alone, or beside a
    word that stands below it again, as a label does and a name does not.
    """
    first, *others = [row for row in rows if len(row) == len(rows[0])]
    below = list(zip(*others, strict=True)) or [()] * len(first)
    if not any(_is_sentence(cell, column) for cell, column in zip(first, below, strict=True)):
        return False
    return len(first) == 1 or any(cell in column for cell, column in zip(first, below, strict=True))


def _is_sentence(cell: str, below: Sequence[str]) -> bool:
    """Whether a cell has several words, as the cells below it have."""
    counts = sorted(len(other.split()) for other in below)
    return bool(counts) and SENTENCE <= counts[len(counts) // 2] <= 4 * len(cell.split()) >= 4 * SENTENCE
