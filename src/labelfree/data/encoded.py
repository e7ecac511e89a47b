"""Files of encoded bytes (pictures, recordings, clips): in folders, in columns of tables, in Hugging Face datasets.

A source gives its items by index, not yet decoded: paths, bytes, arrays, or whatever exception came instead.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelfree.data import sources
from labelfree.data.batch import Unreadable
from labelfree.data.dataset import no_column
from labelfree.data.mapped import Shared, sent
from labelfree.data.once import kept
from labelfree.errors import LabelfreeError, Refusal, nearest, reason_of

#: Row groups larger than this are copied to a temporary file once, where any item can be read alone.
LARGEST_GROUP = 64 << 20
#: Bytes of row groups that are kept in reach.
REACH = 128 << 20
#: Packages whose datasets several threads may ask; not those of torch, which may hold others.
SAFE = frozenset({"builtins", "numpy", "torchvision"})
#: Why an item that is not there cannot be read.
MISSING = "is missing"
TABLES = ((".parquet",), sources.ARROW)


@dataclass(frozen=True)
class Kind:
    """What is encoded, in the words of a person and of file systems.

    Attributes:
        name: in the plural ("pictures").
        suffixes: of its files.
        columns: usual names of a column that holds it.
        feature: name of its Hugging Face feature class ("Image").
    """

    name: str
    suffixes: tuple[str, ...]
    columns: tuple[str, ...]
    feature: str


def turn_of(items: Any) -> AbstractContextManager[None]:
    """What to hold while a user's dataset is asked for an item: few are made for several threads, so that a lock lets
    one in at a time. Those of libraries that open each item by itself, such as torchvision's, need none.
    """
    return nullcontext() if type(items).__module__.partition(".")[0] in SAFE else Turn()


class Turn(AbstractContextManager[None]):
    """A lock, which a copy in another process has anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class Source(Shared, ABC):
    """Encoded items by index."""

    #: What a person calls the source ("1,203 JPG files").
    words: str
    shards: Sequence[int] = (0,)
    #: About how many items of neighbouring shards stay in reach, once read; 0 where any number does.
    reach: int = 0
    #: Folders that cannot be looked into.
    closed: Sequence[Unreadable] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, indices: Sequence[int]) -> list[Any]: ...

    @abstractmethod
    def fingerprint(self) -> str: ...

    def name(self, index: int) -> str:
        return f"row {index}"

    def columns(self) -> list[str]:
        return []

    def column(self, name: str) -> np.ndarray:
        raise self.no_column(name)

    def no_column(self, name: str) -> Refusal:
        """Why there is no column of this name."""
        return no_column(name, self.columns())


class Files(Source):
    """Files, and the table beside them."""

    def __init__(self, paths: list[Path], root: Path, closed: Sequence[Unreadable] = ()) -> None:
        self.paths, self.root, self.closed = paths, root, closed
        kinds = Counter(path.suffix.lower()[1:].replace("jpeg", "jpg").upper() for path in paths)
        self.words = " and ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) + " files"
        self._table: pa.Table | None = None
        self._looked = False

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [p if os.path.isfile(p := self.paths[index]) else ValueError(MISSING) for index in indices]

    @kept
    def fingerprint(self) -> str:
        return sources.hash_files(self.paths, self.root)

    def name(self, index: int) -> str:
        return sources.name_below(self.root, self.paths[index])

    def _sidecar(self) -> pa.Table | None:
        if not self._looked:
            names = [self.name(index) for index in range(len(self))]
            self._table = sources.sidecar(self.root, names)
            if self._table is None:
                inner = [f"{self.root.name}/{name}" for name in names]
                self._table = sources.sidecar(self.root.parent, inner)
            self._looked = True
        return self._table

    def columns(self) -> list[str]:
        table = self._sidecar()
        return ["folder", *(table.column_names if table is not None else ())]

    def column(self, name: str) -> np.ndarray:
        table = self._sidecar()
        if name == "folder" or table is None:
            return np.array([sources.spelled(path.parent.name) for path in self.paths], dtype=object)
        return sources.column_values(table, name)

    def no_column(self, name: str) -> Refusal:
        beside = sources.tables_beside(self.root)
        if self._sidecar() is not None or not beside:
            return super().no_column(name)
        return Refusal(
            f"There is no column '{name}' in the source: '{beside[0]}' names none of its files, such as "
            f"'{self.name(0)}'.",
            "Give the table a column with their names, endings included.",
        )


def encoded_columns(schema: pa.Schema) -> list[str]:
    """Columns of a table that hold, or may hold, encoded items."""

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [field.name for field in schema if holds(field.type)]


def choose_column(names: Sequence[str], wanted: str, where: object, kind: Kind) -> str:
    """The one column of `names`, or the one that is wanted. Raises LabelfreeError otherwise."""
    if wanted != "auto":
        if wanted in names:
            return wanted
        raise LabelfreeError(
            f"'{where}' has no {kind.name} called '{wanted}': it has {', '.join(names) or 'none'}.",
            nearest(wanted, names),
        )
    if len(names) == 1:
        return names[0]
    usual = [name for name in names if name.lower() in kind.columns]
    if len(usual) == 1:
        return usual[0]
    found = f"several: {', '.join(names)}" if names else "none"
    raise LabelfreeError(f"'{where}' should have one column of {kind.name}, but has {found}.", "Name it: column=NAME.")


def _encoded(values: pa.Array, row: int, folder: Path) -> Any:
    """Bytes of one row of a column, or the path that it names."""
    if not pa.types.is_struct(values.type):
        scalar = values[row]
        return memoryview(scalar.as_buffer()) if scalar.is_valid else ValueError(MISSING)
    content = values.field("bytes")[row]
    if content.is_valid and values[row].is_valid:
        return memoryview(content.as_buffer())
    if values.type.get_field_index("path") >= 0 and (path := values.field("path")[row].as_py()):
        return folder / path
    return ValueError(MISSING)


class Table(Source):
    """An encoded column of Parquet or Arrow files, read a row group at a time; only a few groups are in memory."""

    def __init__(self, paths: list[Path], kind: Kind, column: str = "auto") -> None:
        self.paths, self._kind = paths, kind
        self._files = [_TableFile(path) for path in paths]
        schema = self._files[0].schema
        self._column = choose_column(encoded_columns(schema), column, paths[0], kind)
        for file in self._files:
            if self._column not in encoded_columns(file.schema):
                raise LabelfreeError(
                    f"'{file.path}' has no column '{self._column}' of {kind.name}, but '{paths[0]}' has.",
                    "Give it one, or move it elsewhere.",
                )
        self._names = [
            field.name
            for field in schema
            if field.name != self._column
            and not pa.types.is_nested(field.type)
            and all(field.name in file.schema.names for file in self._files)
        ]
        rows = [size for file in self._files for size in file.group_rows]
        self._where = [(number, group) for number, file in enumerate(self._files) for group in range(file.groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, pa.Array] = OrderedDict()
        self._failed: dict[int, Exception] = {}
        self._spool: _Spool | None = None
        sizes = [size for file in self._files for size in file.group_bytes(self._column)]
        self._large = max(sizes, default=0) > LARGEST_GROUP
        self.shards = (0,) if self._large else self._starts[:-1].tolist() or (0,)
        total = sum(sizes)
        if total and not self._large:  # half of what is kept, for the groups in which a window begins and ends
            self.reach = max(1, REACH // 2 * len(self) // total)
        self.words = f"column '{self._column}' of {len(paths)} {paths[0].suffix[1:]} file{'s' * (len(paths) > 1)}"

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "kind": self._kind, "column": self._column, "spool": self._spool}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"], state["kind"], state["column"])  # type: ignore[misc]
        self._spool = state["spool"]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        if self._large:
            return self._spooled().fetch(indices)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        found: list[Any] = [None] * len(indices)
        for group in np.unique(groups):
            path, places = self.paths[self._where[group][0]], np.flatnonzero(groups == group).tolist()
            values = self._group(int(group))
            for place in places:
                row = int(indices[place] - self._starts[group])
                found[place] = values if isinstance(values, Exception) else _encoded(values, row, path.parent)
        return found

    def _group(self, group: int) -> pa.Array | Exception:
        """The items of a row group, or why it cannot be read: a page is damaged, or the file is gone."""
        with self._lock:
            if group in self._failed:
                return self._failed[group]
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            number, inside = self._where[group]
            try:
                values = self._files[number].read(inside, self._column)
            except (pa.ArrowException, OSError) as error:
                return self._failed.setdefault(group, error.with_traceback(None))
            self._groups[group] = values
            while len(self._groups) > 1 and sum(v.nbytes for v in self._groups.values()) > REACH:
                self._groups.popitem(last=False)
            return values

    def _spooled(self) -> _Spool:
        with self._lock:
            if self._spool is None:
                spool = _Spool()
                for number, group in self._where:
                    file, size = self._files[number], len(spool) + self._files[number].group_rows[group]
                    try:
                        for values in file.stream(group, self._column):
                            spool.add([_encoded(values, row, file.path.parent) for row in range(len(values))])
                    except (pa.ArrowException, OSError) as error:  # a page is damaged, or the file is gone
                        spool.add([error] * (size - len(spool)))
                self._spool = spool
            return self._spool

    @kept
    def fingerprint(self) -> str:
        return sources.hash_of(sources.hash_files(self.paths, sources.common_folder(self.paths)), self._column)

    def columns(self) -> list[str]:
        return list(self._names)

    def column(self, name: str) -> np.ndarray:
        parts = [file.columns([name]) for file in self._files]
        return sources.column_values(sources.concatenate(parts, f"The columns '{name}' of the tables"), name)


class _TableFile:
    """One Parquet or Arrow (file or stream) file: what it holds, and its row groups.

    It is open only while it is read: a source may have more shards than a process may have open files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrow: pa.Table | None = None
        self._metadata: pq.FileMetaData | None = None
        try:
            if path.suffix.lower() == ".parquet":
                with self._open() as file:
                    self.schema, self._metadata = file.schema_arrow, file.metadata
                self.groups = self._metadata.num_row_groups
                self.group_rows = [self._metadata.row_group(g).num_rows for g in range(self.groups)]
            else:
                self._arrow = sources.map_arrow(path)
                self.schema = self._arrow.schema
                batches = self._arrow.to_batches()
                self.groups, self.group_rows = len(batches), [len(batch) for batch in batches]
        except (pa.ArrowException, OSError) as error:
            raise LabelfreeError(f"'{path}' cannot be read: {reason_of(error)}.", "Check that it is whole.") from None

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, metadata=self._metadata, buffer_size=1 << 20, pre_buffer=False)

    def group_bytes(self, column: str) -> list[int]:
        """Bytes that each row group takes in memory; 0 where it is only mapped."""
        if self._metadata is None:
            return [0] * self.groups
        groups = [self._metadata.row_group(g) for g in range(self.groups)]
        parts = [[group.column(c) for c in range(group.num_columns)] for group in groups]
        return [sum(p.total_uncompressed_size for p in ps if p.path_in_schema.split(".")[0] == column) for ps in parts]

    def read(self, group: int, column: str) -> pa.Array:
        if self._metadata is not None:
            with self._open() as file:
                values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
            return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
        assert self._arrow is not None
        return self._arrow.column(column).chunk(group)

    def stream(self, group: int, column: str) -> Iterator[pa.Array]:
        """The values of a row group, some at a time."""
        if self._metadata is not None:
            with self._open() as file:
                for batch in file.iter_batches(256, [group], [column], use_threads=False):
                    yield batch.column(0)
        else:
            yield self.read(group, column)

    def columns(self, names: list[str]) -> pa.Table:
        if self._metadata is not None:
            with self._open() as file:
                return file.read(columns=names)
        assert self._arrow is not None
        return self._arrow.select(names)


class _Spool:
    """Encoded items in one temporary file, each to be read alone.

    The file has no name, so that it goes with its last process, however that ends; a copy in another process has a
    duplicate of the open file.
    """

    def __init__(self) -> None:
        self._file, name = tempfile.mkstemp(prefix="labelfree-")
        os.unlink(name)
        self._ends = array("q", [0])
        self._faults: dict[int, Exception] = {}
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": sent(self._file), "ends": self._ends, "faults": self._faults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._file, self._ends, self._faults = state["file"].detach(), state["ends"], state["faults"]
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, items: Sequence[Any]) -> None:
        """Append items; those that are missing or cannot be read take no bytes."""
        contents = [self._content(number, item) for number, item in enumerate(items, len(self))]
        for content in contents:
            self._ends.append(self._ends[-1] + len(content))
        whole = memoryview(b"".join(contents))
        try:
            while whole:
                whole = whole[os.write(self._file, whole) :]
        except OSError as error:
            raise LabelfreeError(
                f"The items could not be copied to '{tempfile.gettempdir()}': {error.strerror}.",
                "Free space, name another folder in TMPDIR, or write the Parquet file with smaller row groups.",
            ) from None

    def _content(self, number: int, item: Any) -> bytes | memoryview:
        if not isinstance(item, Exception):
            try:
                return item.read_bytes() if isinstance(item, Path) else item
            except OSError as error:
                item = error
        self._faults[number] = item.with_traceback(None)
        return b""

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        found: list[Any] = []
        for index in indices:
            start, end = self._ends[index : index + 2]
            content = os.pread(self._file, end - start, start)
            found.append(content or self._faults.get(index) or ValueError(MISSING))
        return found


class HuggingFace(Source):
    """A local `datasets.Dataset` with a column of encoded items."""

    def __init__(self, dataset: Any, kind: Kind, column: str = "auto") -> None:
        import datasets

        sources.check_whole(dataset)
        dataset = dataset.with_format(None)  # a transform or a format of the user's is for another reader
        feature = getattr(datasets, kind.feature)
        names = [name for name, found in dataset.features.items() if isinstance(found, feature)]
        self._column = choose_column(names, column, "the dataset", kind)
        self._dataset = dataset
        self._encoded = dataset.select_columns([self._column]).cast_column(self._column, feature(decode=False))
        self.words = f"column '{self._column}' of a Hugging Face dataset"

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        rows = self._encoded[list(indices)][self._column]
        return [_of_row(row) for row in rows]

    def fingerprint(self) -> str:
        return sources.hash_of(len(self), self._column, self._dataset._fingerprint)

    def columns(self) -> list[str]:
        return [name for name in self._dataset.column_names if name != self._column]

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self._dataset[name][:])


def _of_row(row: dict[str, Any] | None) -> Any:
    if row is None:
        return ValueError(MISSING)
    if row.get("bytes"):
        return row["bytes"]
    return Path(row["path"]) if row.get("path") else ValueError(MISSING)


def has_feature(source: Any, kind: Kind) -> bool:
    """Whether a Hugging Face dataset has a column of this kind."""
    return kind.feature in {type(found).__name__ for found in getattr(source, "features", {}).values()}


def open_table(path: Path, kind: Kind, column: str) -> Source | None:
    """The Parquet or Arrow file at `path`; None where it is something else."""
    tables = any(path.suffix.lower() in suffixes for suffixes in TABLES)
    return Table([path], kind, column) if tables and path.is_file() else None


def open_folder(path: Path, kind: Kind, column: str) -> Source:
    """Files of this kind below the folder `path`, or else tables of them. Raises LabelfreeError where there is none."""
    errors: list[OSError] = []
    if files := sources.list_files(path, kind.suffixes, errors.append):
        names = [os.path.relpath(error.filename, path) for error in errors]
        closed = [Unreadable(-1, name, e.strerror or str(e)) for name, e in zip(names, errors, strict=True)]
        return Files(files, path, closed)
    for suffixes in TABLES:
        if tables := sources.list_files(path, suffixes):
            return Table(tables, kind, column)
    raise LabelfreeError(
        f"'{path}' holds no {kind.name}: files ending in {', '.join(kind.suffixes)} were expected, "
        f"found: {sources.what_is_in(path)}.",
        f"Name a folder of {kind.name}, or another modality.",
    )
