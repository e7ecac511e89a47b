"""Lists and columns of tables that name files, and the files that a column names as a source."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelfree.data import films, pictures, sources
from labelfree.data.encoded import Files, Kind, choose_column, encoded_columns
from labelfree.data.sound import SUFFIXES as SOUNDS
from labelfree.errors import LabelfreeError

#: How names of files end. Of texts only the usual: ".org" or ".log" may end other words.
ENDINGS = frozenset((*pictures.SUFFIXES, ".gif", *SOUNDS, *films.SUFFIXES, ".txt", ".md"))


def naming_columns(table: pa.Table, suffixes: Collection[str] = ENDINGS) -> list[str]:
    """Columns of strings nearly all of which are names of files that end so."""
    strings = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    return [name for name in strings if sources.names_files(_head(table, name), suffixes)]


def _head(table: pa.Table, name: str) -> list[str]:
    return [value for value in table.column(name).slice(0, sources.HEAD_ROWS).to_pylist() if value and value.strip()]


def are_there(table: pa.Table, name: str, folder: Path) -> bool:
    """Whether any of the files that the first rows of a column name is there, seen from `folder`."""
    return any(os.path.isfile(folder / value) for value in _head(table, name))


def none_there(table: pa.Table, names: Sequence[str], folder: Path) -> LabelfreeError | None:
    """The refusal of the first of some columns that name files of which none is there; None where there is no such."""
    absent = next((name for name in names if not are_there(table, name, folder)), None)
    if absent is None:
        return None
    return LabelfreeError(
        f"'{absent}' names files, none of which is in '{folder}'.",
        "Put the table beside its files, write their paths as seen from it, or say --modality table.",
    )


def refuse_names(path: Path) -> None:
    """Raises LabelfreeError where a table, or the first one of a folder of tables, has a column that names files."""
    tables = [path] if path.is_file() else sources.list_files(path)
    all_tables = bool(tables) and all(table.suffix.lower() in sources.TABLES for table in tables)
    head = _head_of(tables[0]) if all_tables else None
    if head is None:
        return
    names = naming_columns(head)
    if refusal := none_there(head, names, tables[0].parent):
        raise refusal
    if names:
        raise LabelfreeError(
            f"'{names[0]}' of '{tables[0].name}' names files, which have to be opened themselves.",
            "Put the table beside them as metadata.csv and name their folder, or say --modality table.",
        )


def _head_of(path: Path) -> pa.Table | None:
    """The first rows of a table; None for another file, or where the items lie in the table itself."""
    if not path.is_file() or path.suffix.lower() not in sources.TABLES:
        return None
    if path.suffix.lower() in sources.BINARY and encoded_columns(sources.schema_of(path)):
        return None
    head = sources.read_head(path)
    return None if encoded_columns(head.schema) else head


class Listed(Files):
    """Files that a column of a table names, as seen from its folder; its columns are beside them.

    Raises LabelfreeError where none of them is there, or no one column names files of this kind.
    """

    def __init__(self, path: Path, kind: Kind, column: str = "auto") -> None:
        table = sources.read_table(path)
        name = choose_column(naming_columns(table, kind.suffixes), column, path, kind)
        if refusal := none_there(table, [name], path.parent):
            raise refusal
        self._values = [value or "" for value in table.column(name).to_pylist()]
        super().__init__([path.parent / value for value in self._values], path.parent)
        self._table, self._looked = table, True
        self.words = f"{len(table):,} files named by column '{name}' of '{path.name}'"

    def fingerprint(self) -> str:
        sizes = map(sources.size_of, self.paths)
        named = (f"{value} {size}" for value, size in zip(self._values, sizes, strict=True))
        return sources.hash_of(*named, *sources.glimpses(self.paths))

    def name(self, index: int) -> str:
        return self._values[index] or f"row {index}"


def open_listed(path: Path, kind: Kind, column: str = "auto") -> Listed | None:
    """The files of this kind that a table names; None where it names none.

    Raises:
        LabelfreeError: none of them is there.
    """
    head = _head_of(path)
    return Listed(path, kind, column) if head is not None and naming_columns(head, kind.suffixes) else None


def recognise_names(source: Any, kind: Kind) -> tuple[float, str]:
    """How sure that a list names files of this kind that are there."""
    known = sources.listed_files(source, kind.suffixes) is not None
    return (0.96, f"a list that names {len(source):,} {kind.name}") if known else (0.0, "")


def recognise_listed(path: Path, kind: Kind) -> tuple[float, str]:
    """How sure that a table names files of this kind that are there; more columns may be labels of theirs."""
    head = _head_of(path)
    if head is None:
        return 0.0, ""
    names = [name for name in naming_columns(head, kind.suffixes) if are_there(head, name, path.parent)]
    return (0.96, f"{kind.name} named by column '{names[0]}'") if names else (0.0, "")
