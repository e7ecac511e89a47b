"""JSON records as tables: a record a line, or a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.json import ReadOptions, read_json

from labelfree.data.delimited import MOST

LINES, SUFFIXES = (".jsonl",), (".jsonl", ".json")


def read_records(path: Path) -> pa.Table:
    """A file as a table.

    Raises:
        ValueError, pa.ArrowException: it is damaged, or a list of something else.
    """
    if path.suffix.lower() not in LINES and _is_list(path):
        return _table_of_all(json.loads(path.read_bytes()))
    try:
        return _read_lines(path)
    except pa.ArrowInvalid as error:
        if "changed from" not in str(error):
            raise
    with path.open("rb") as file:  # values of several types
        return _table_of_all([json.loads(line) for line in file if line.strip()])


def _read_lines(path: Path) -> pa.Table:
    try:
        return read_json(path)
    except pa.ArrowInvalid as error:
        size = path.stat().st_size
        if "straddl" not in str(error) or size >= MOST:  # a record longer than Arrow's blocks
            raise
        return read_json(path, ReadOptions(block_size=size + 1))


def _table_of_all(rows: Sequence[Any]) -> pa.Table:
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("it holds a list, and not of records")
    return table_of(rows)


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Records as a table; what only some of them have is missing in the others."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({str(name): array_of([row.get(name) for row in rows]) for name in names})


def array_of(values: Any) -> pa.Array:
    """A column; values of several types become text, as do categories of no plain type (pandas' intervals)."""
    try:
        found = pa.array(values, from_pandas=True)
        if not (pa.types.is_dictionary(found.type) and isinstance(found.type.value_type, pa.BaseExtensionType)):
            return found
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass
    return pa.array([None if value is None or value != value else str(value) for value in values], pa.string())


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
