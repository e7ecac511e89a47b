"""Tables whose rows are samples: files, folders of files, frames, databases. Columns are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from labelfree.data.records import array_of, table_of
from labelfree.data.sources import (
    TABLES,
    check_names,
    concatenate,
    frame,
    hash_files,
    hash_of,
    list_files,
    plain,
    read_table,
    readable,
)
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, reason_of
from labelfree.files import existing, is_address, without_secrets

DATABASES = (".db", ".sqlite", ".sqlite3")
#: Addresses that databases do not have.
REMOTE = ("http", "https", "ftp", "s3", "gs", "hf")
#: Rows that are looked at to take a table's fingerprint.
SKETCH = 1000
#: Rows that a database hands over at a time.
FETCH = 50_000


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Rows:
    """A table, not yet read.

    Attributes:
        what: what it is called in errors.
        names: of its columns.
        count: rows.
        read: names of columns → a table of these.
        by_column: whether a column costs no more than its share of the reading.
        fingerprint: hash of what it holds.
        ragged: rows that have another number of cells than the others, and the words for it; all missing in the table.
        let_go: called when most has been read: files that were held are read anew from then on.
    """

    what: str
    names: tuple[str, ...]
    count: int
    read: Callable[[Sequence[str]], pa.Table]
    by_column: bool
    fingerprint: str
    ragged: Mapping[int, str] = field(default_factory=dict)
    let_go: Callable[[], None] = _nothing

    def columns(self, names: Sequence[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """The columns of these names, one after another, with as few of them in memory as the source allows."""
        for part in [[name] for name in names] if self.by_column else [list(names)]:
            table = self.read(part)
            if len(table) != self.count:
                raise LabelfreeError(f"{self.what} changed while it was read.", "Read it from a copy that stays.")
            for name in part:
                yield name, table.column(name)


def open_rows(source: Any, query: str = "") -> Rows:
    """Open a table.

    Args:
        source: a file (CSV, Parquet, Arrow, JSON lines, SQLite), a folder of such files with the same columns, the
            address of a database (`sqlite:///shop.db`), an Arrow table, a data frame (pandas, polars), a mapping of
            columns, a list of records, or an array (N, columns).
        query: what to ask a database for; empty for its only table.

    Raises:
        LabelfreeError: nothing there, no table, or an empty one.
    """
    if is_address(source) or _is_database(source):
        rows = _from_database(str(source), query)
    elif isinstance(source, str | Path):
        path = existing(source)
        rows = _from_folder(path) if path.is_dir() else _from_file(path)
    else:
        rows = _in_memory(plain(as_table(source)), f"the {type(source).__name__}")
    check_names(rows.names, rows.what)
    if not rows.names or not rows.count:
        raise LabelfreeError(f"{rows.what} has {len(rows.names)} columns and no row.", "Give a table with rows.")
    return rows


def as_table(source: Any) -> pa.Table:
    """A table of what is held in memory.

    Raises:
        LabelfreeError: it is no table, or holds what no column can.
    """
    try:
        if (table := frame(source)) is not None:
            return table
        if isinstance(source, Mapping):
            return pa.table({str(name): array_of(column) for name, column in source.items()})
        if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
            return table_of(source)
        # an array of texts makes each as wide as the longest
        if not _has_words(source) and (array := np.asarray(source)).ndim == 2 and array.dtype.kind in "fiub":
            return pa.table({str(number): column for number, column in enumerate(array.T)})
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise LabelfreeError(
            f"The {type(source).__name__} is no table: {reason_of(error)}.", "Give columns of equal length."
        ) from None
    raise LabelfreeError(f"A {type(source).__name__} is no table.", "Give a file, a data frame or an Arrow table.")


def _has_words(source: Any) -> bool:
    """Whether a list has texts among its items, or among those of its rows."""
    rows = source if isinstance(source, list | tuple) else ()
    items = chain.from_iterable(row if isinstance(row, list | tuple) else (row,) for row in rows)
    return any(isinstance(item, str | bytes) for item in items)


def _in_memory(table: pa.Table, what: str, fingerprint: str = "") -> Rows:
    return Rows(what, tuple(table.column_names), len(table), table.select, False, fingerprint or _sketch(table))


def _sketch(table: pa.Table) -> str:
    """A hash of the columns and of rows spread over the table."""
    rows = spaced(len(table), SKETCH)
    return hash_of(table.schema.to_string(show_schema_metadata=False), len(table), table.take(rows).to_pylist())


# ---- files


class _Held:
    """A file's table, which is held until it is let go, and then read anew when a label is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ragged: dict[int, str] = {}
        self.table: pa.Table | None = read_table(path, ragged=self.ragged)

    def read(self, names: Sequence[str]) -> pa.Table:
        return read_table(self.path, names, {}) if self.table is None else self.table.select(names)

    def let_go(self) -> None:
        self.table = None


def _from_file(path: Path) -> Rows:
    what, fingerprint = f"'{path}'", hash_files([path], path)
    if path.suffix.lower() != ".parquet":
        held = _Held(path)
        assert held.table is not None
        names, count = tuple(held.table.column_names), len(held.table)
        return Rows(what, names, count, held.read, False, fingerprint, held.ragged, held.let_go)
    with _opened(path) as file:
        names, count = tuple(file.schema_arrow.names), file.metadata.num_rows
    return Rows(what, names, count, partial(_read_parquet, path), True, fingerprint)


def _read_parquet(path: Path, names: Sequence[str]) -> pa.Table:
    with _opened(path) as file:
        return plain(file.read(columns=list(names)))


def _opened(path: Path) -> parquet.ParquetFile:
    with readable(path):
        return parquet.ParquetFile(path)


def _from_folder(folder: Path) -> Rows:
    paths = list_files(folder, TABLES)
    if not paths:
        raise LabelfreeError(f"There is no table in '{folder}'.", f"Tables end in {', '.join(TABLES)}.")
    parts = [_from_file(path) for path in paths]
    for part in parts[1:]:
        if set(part.names) != set(parts[0].names):
            odd = sorted(set(part.names) ^ set(parts[0].names))[0]
            raise LabelfreeError(
                f"The tables in '{folder}' have different columns: '{odd}' is not in all of them.", "Name one file."
            )

    count, by_column = sum(part.count for part in parts), all(part.by_column for part in parts)
    starts = accumulate((part.count for part in parts[:-1]), initial=0)
    ragged = {start + row: f"{why} in {part.what}" for start, part in zip(starts, parts, strict=True)
              for row, why in part.ragged.items()}  # fmt: skip
    what, read = f"'{folder}'", partial(_read_parts, parts, folder)
    fingerprint, let_go = hash_files(paths, folder), partial(_let_go_parts, parts)
    return Rows(what, parts[0].names, count, read, by_column, fingerprint, ragged, let_go)


def _read_parts(parts: Sequence[Rows], folder: Path, names: Sequence[str]) -> pa.Table:
    return concatenate([part.read(names) for part in parts], f"The tables in '{folder}'")


def _let_go_parts(parts: Sequence[Rows]) -> None:
    for part in parts:
        part.let_go()


# ---- databases


def _is_database(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in DATABASES


def _from_database(address: str, query: str) -> Rows:
    """The answer to a query, held in memory: a database is asked once."""
    table = _ask_sqlite(address, query) if _sqlite_path(address) is not None else _ask_any(address, query)
    return _in_memory(table, f"The answer of '{without_secrets(address)}'")


def _sqlite_path(address: str) -> Path | None:
    if address.startswith("sqlite:///"):
        return Path(address.removeprefix("sqlite:///")).expanduser()
    return None if is_address(address) else Path(address).expanduser()


def _ask_sqlite(address: str, query: str) -> pa.Table:
    import sqlite3

    path = _sqlite_path(address)
    assert path is not None
    path = existing(path).resolve()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
            cursor = connection.execute(query or _select_only([name for (name,) in found], address, _quoted))
            return _fetch([column[0] for column in cursor.description or ()], cursor)
    except sqlite3.Error as error:
        raise LabelfreeError(f"'{path}' did not answer: {error}.", "Check the file and the query.") from None


def _ask_any(address: str, query: str) -> pa.Table:
    shown = without_secrets(address)
    if address.partition("://")[0].lower() in REMOTE:
        raise LabelfreeError(f"'{shown}' is not on this machine.", "Download it first, and name the file.")
    try:
        import sqlalchemy
    except ModuleNotFoundError:
        raise LabelfreeError(
            f"'{shown}' is read through SQLAlchemy, which is not installed.",
            "Install it: pip install sqlalchemy.",
        ) from None
    try:
        with sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).connect() as connection:
            inspector, spelling = sqlalchemy.inspect(connection), connection.dialect.identifier_preparer
            asked = query or _select_only(inspector.get_table_names(), shown, spelling.quote)
            answer = connection.execute(sqlalchemy.text(asked))
            return _fetch(list(answer.keys()), answer)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise LabelfreeError(
            f"'{shown}' did not answer: {reason_of(error)}.", "Check the address and the query."
        ) from None


def _quoted(table: str) -> str:
    """A table's name as standard SQL writes it."""
    return '"' + table.replace('"', '""') + '"'


def _select_only(tables: Sequence[str], address: str, quoted: Callable[[str], str]) -> str:
    if len(tables) == 1:
        return f"SELECT * FROM {quoted(tables[0])}"
    found = f"{len(tables)} tables ({', '.join(tables[:10])})" if tables else "no table"
    raise LabelfreeError(f"'{address}' holds {found}.", 'Say which rows are samples: query="SELECT … FROM …".')


def _fetch(names: list[str], answer: Any) -> pa.Table:
    """A cursor's rows as a table, taken in pieces; types are found for whole columns."""
    pieces: list[list[pa.Array]] = [[] for _ in names]
    while rows := answer.fetchmany(FETCH):
        for piece, values in zip(pieces, zip(*rows, strict=True), strict=True):
            piece.append(array_of(list(values)))
    return pa.table([_joined(piece) for piece in pieces], names=names)


def _joined(pieces: list[pa.Array]) -> pa.ChunkedArray:
    kinds = {piece.type for piece in pieces if not pa.types.is_null(piece.type)}
    if len(kinds) > 1:
        numeric = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
        kinds = {pa.float64() if numeric else pa.string()}
    kind = next(iter(kinds), pa.null())
    return pa.chunked_array([piece.cast(kind) for piece in pieces], type=kind)
