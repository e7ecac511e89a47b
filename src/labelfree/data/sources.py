"""Where data lies: what every modality needs to find files, tables and the columns beside them."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labelfree.data import delimited, records
from labelfree.data.once import once
from labelfree.data.records import array_of
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, reason_of

ARROW = (".arrow", ".feather")
#: Tables that may hold pictures, recordings and films as they are encoded.
BINARY = (".parquet", *ARROW)
TABLES = (".csv", ".tsv", *BINARY, ".jsonl", ".json")
ARRAYS = (".npy", ".npz")
#: Endings of spreadsheets; of files that hold other files, or one, in fewer bytes.
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".tar", ".tgz")
#: Bytes of a text file, and rows of a table, that are read to tell what it holds.
HEAD_BYTES, HEAD_ROWS = 1 << 20, 1000
#: Features of Hugging Face datasets that are files.
MEDIA = frozenset({"Image", "Audio", "Video"})
#: How many files are looked into to tell a source from others, and bytes that are read at a place.
GLIMPSES, GLIMPSE = 16, 1024
#: What the table beside files is called.
BESIDE = ("metadata", "labels")
#: The share of strings that end as files do where they are names of files, and how long a name may be.
NEARLY_ALL, LONGEST = 0.9, 1000


def list_files(
    folder: Path, suffixes: Collection[str] | None = None, closed: Callable[[OSError], None] | None = None
) -> list[Path]:
    """Files below `folder` with one of the suffixes (lower case; None: any), sorted by path; hidden ones left out.

    So are folders that Labelfree wrote, unless `folder` is one: a run may lie inside its own source.
    `closed` is told of folders that cannot be looked into.
    """
    found, refused = _files_below(folder)
    if closed is not None:
        for error in refused:
            closed(error)
    return [path for path in found if suffixes is None or path.suffix.lower() in suffixes]


@once
def _files_below(folder: Path) -> tuple[list[Path], list[OSError]]:
    found: list[Path] = []
    refused: list[OSError] = []
    seen: set[str] = set()
    # links to folders wait for the folders themselves: each is looked into once, though links may go round in circles
    waiting = [folder]
    for start in waiting:
        for at, folders, names in os.walk(start, onerror=refused.append):
            place = os.path.realpath(at)
            if place in seen or (at != str(folder) and _is_ours(folders, names)):
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [link for name in folders if (link := Path(at, name)).is_symlink()]
            found += [Path(at, name) for name in names if not name.startswith(".")]
            seen.add(place)
    return sorted(path for path in found if path.is_file()), refused


def _is_ours(folders: Collection[str], names: Collection[str]) -> bool:
    """Whether a folder with these folders and files is a run, or a fine-tuned model."""
    run = "run.json" in names and ("modality.json" in names or "encoder" in folders)
    return run or {"model.json", "model.safetensors"} <= set(names)


def share_of(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], float]:
    """Files below `folder` with one of the suffixes, and their share among all; without the table beside others."""
    found = list_files(folder, suffixes)
    found = [p for p in found if not (p.suffix.lower() in TABLES and p.stem.lower() in BESIDE)] or found
    return found, len(found) / max(len(list_files(folder)), 1)


def what_is_in(folder: Path) -> str:
    """The most frequent suffixes below a folder in words ("1,203 .png, 3 no suffix")."""
    found = Counter(path.suffix.lower() or "no suffix" for path in list_files(folder))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in found.most_common(3)) or "no files"


def recognise_folder(
    folder: Path, suffixes: Collection[str], what: str, look: Callable[[Path], tuple[float, str]]
) -> tuple[float, str]:
    """How sure that a folder holds files of one kind: by their share, or else a `look` at its first table of such."""
    found, share = share_of(folder, suffixes)
    if found:
        return 0.95 * share, f"{len(found):,} {what} files"
    tables = list_files(folder, BINARY)
    return look(tables[0]) if tables else (0.0, "")


def misnamed(path: Path, what: str, read: Callable[[], Any]) -> LabelfreeError:
    """Why a file cannot be read as its name says."""
    reason = "it begins like none"
    try:
        read()
    except Exception as error:  # whatever decoders raise
        reason = reason_of(error)
    return LabelfreeError(
        f"'{path}' is named like {what}, but cannot be read as one: {reason}.", "Check that it is whole."
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises LabelfreeError for what reading a damaged file raises."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.suffix.lower()[1:]
        raise LabelfreeError(
            f"'{path}' cannot be read as {kind}: {reason_of(error)}.", "Check that it is whole."
        ) from None


def read_table(path: Path, names: Sequence[str] | None = None, ragged: dict[int, str] | None = None) -> pa.Table:
    """A CSV, TSV, Parquet, Arrow/Feather or JSON file as a table, or the columns of these names.

    Args:
        path: the file.
        names: of the columns; None for all.
        ragged: takes in, by their number, rows of delimited text that have another number of cells than the first, and
            what is wrong with them; they become rows of missing values. Without it such rows are refused.

    Raises:
        LabelfreeError: it cannot be read as what its name says, or has two columns of one name.
    """
    from pyarrow import parquet

    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise LabelfreeError(f"'{path}' is not a table.", f"Tables end in {', '.join(TABLES)}.")
    with readable(path):
        if suffix in delimited.SUFFIXES:
            table = delimited.read_whole(path, _start_of(path), ragged)
        elif suffix == ".parquet":
            table = plain(parquet.read_table(path, columns=names))
        elif suffix in ARROW:
            table = map_arrow(path)
        else:
            table = records.read_records(path)
    check_names(table.column_names, f"'{path}'")
    return table if names is None else table.select(names)


def map_arrow(path: Path, rows: bool = True) -> pa.Table:
    """An Arrow file, or an Arrow stream (as Hugging Face writes), mapped into memory; or a file of Feather's first
    version. Without its `rows` nothing is unpacked.
    """
    from pyarrow import feather

    with pa.memory_map(str(path)) as mapped:  # the mapping outlives the open file
        for opened in (pa.ipc.open_file, pa.ipc.open_stream):
            with suppress(pa.ArrowInvalid):
                mapped.seek(0)
                found = opened(mapped)
                return plain(found.read_all() if rows else found.schema.empty_table())
    return plain(feather.read_table(path))


def check_names(names: Sequence[str], what: str) -> None:
    """Raises LabelfreeError where two columns have one name."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise LabelfreeError(f"{what} has several columns named '{twice}'.", "Rename all but one of them.")


@once
def read_head(path: Path, rows: int = HEAD_ROWS) -> pa.Table:
    """The first rows of what `read_table` would read, at the cost of these alone: for telling what a table holds.

    Raises:
        LabelfreeError: it cannot be read as what its name says, or has two columns of one name.
    """
    from pyarrow import json

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_head(path, schema_of(path).names, rows)
    try:
        if suffix in (*delimited.SUFFIXES, ".jsonl", ".json") and path.stat().st_size > HEAD_BYTES:
            head = _start_of(path)
            if suffix in delimited.SUFFIXES:
                found = delimited.read_start(head, suffix)
            else:
                found = json.read_json(io.BytesIO(head[: head.rfind(b"\n") + 1]))
            if len(found):
                check_names(found.column_names, f"'{path}'")
                return found.slice(0, rows)
    except (pa.ArrowException, OSError, ValueError):
        pass  # a cell or a record may be longer than the head: the whole says what is wrong, if anything
    return read_table(path, ragged={}).slice(0, rows)


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


@once
def schema_of(path: Path) -> pa.Schema:
    """The columns of a Parquet or Arrow file. Raises LabelfreeError as `read_head` does."""
    from pyarrow import parquet

    with readable(path):
        schema = map_arrow(path, rows=False).schema if path.suffix.lower() in ARROW else parquet.read_schema(path)
    check_names(schema.names, f"'{path}'")
    return schema


def parquet_head(path: Path, names: Sequence[str], rows: int) -> pa.Table:
    """The first rows of some columns of a Parquet file. Raises LabelfreeError as `read_head` does."""
    from pyarrow import parquet

    with readable(path), parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        first = next(file.iter_batches(rows, columns=list(names), use_threads=False), None)
        return plain(file.schema_arrow.empty_table().select(names) if first is None else pa.Table.from_batches([first]))


def concatenate(tables: Sequence[pa.Table], what: str) -> pa.Table:
    """Tables one below another; what is numbers in one and words in another is words in all.

    Raises:
        LabelfreeError: a column's types have nothing in common.
    """
    fields: dict[str, list[pa.Field]] = {}
    for field in (field for table in tables for field in table.schema):
        fields.setdefault(field.name, []).append(field)
    mixed = {name for name, own in fields.items() if not _agree(own)}
    try:
        return pa.concat_tables([_as_words(table, mixed) for table in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise LabelfreeError(f"{what} do not fit together: {reason_of(error)}.", "Name one of them.") from None


def _agree(fields: Sequence[pa.Field]) -> bool:
    try:
        pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_words(table: pa.Table, names: Collection[str]) -> pa.Table:
    schema = pa.schema([field.with_type(pa.string()) if field.name in names else field for field in table.schema])
    return table.cast(schema)


def frame(source: Any, rows: int | None = None) -> pa.Table | None:
    """A data frame (pandas, polars, whatever else speaks Arrow), a Hugging Face dataset or an Arrow table as a table;
    None for anything else.

    Args:
        rows: the first ones alone.

    Raises:
        LabelfreeError: it holds what no column can, two columns of one name, or nothing yet (a LazyFrame, a stream).
    """
    if is_hugging_face(source):
        check_whole(source)
        # pictures, recordings and films are no cells of a table, and may not fit in memory
        cells = [name for name, kind in source.features.items() if type(kind).__name__ not in MEDIA]
        count = len(source) if rows is None else min(rows, len(source))
        return plain(source.select_columns(cells).select(range(count)).with_format("arrow")[:]) if cells else None
    if hasattr(source, "collect") and hasattr(source, "collect_schema"):
        raise LabelfreeError(f"A {type(source).__name__} is not computed yet.", "Collect it first: frame.collect().")
    if not hasattr(source, "columns") or not (hasattr(source, "iloc") or hasattr(source, "__arrow_c_stream__")):
        return None
    if rows is not None:
        source = source.head(rows) if hasattr(source, "head") else source.slice(0, rows)
    check_names([str(name) for name in _names_of(source)], f"The {type(source).__name__}")
    try:
        if not hasattr(source, "iloc"):
            return plain(source if isinstance(source, pa.Table) else pa.table(source))
        renamed = source.set_axis([str(name) for name in source.columns], axis=1)
        places = range(len(renamed.columns))
        return plain(pa.Table.from_arrays([array_of(renamed.iloc[:, i]) for i in places], list(renamed.columns)))
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise LabelfreeError(
            f"The {type(source).__name__} is no table: {reason_of(error)}.", "Give columns of equal length."
        ) from None


def is_hugging_face(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "datasets"


def check_whole(dataset: Any) -> None:
    """Raises LabelfreeError where a Hugging Face dataset is several splits, or a stream."""
    if isinstance(dataset, dict):
        raise LabelfreeError(
            f"This Hugging Face dataset has the splits {', '.join(dataset)}: one was expected.",
            "Name one, for instance dataset['train'].",
        )
    if not hasattr(dataset, "__len__"):
        raise LabelfreeError("A streamed Hugging Face dataset cannot be read anywhere.", "Load it whole.")


def _names_of(source: Any) -> Sequence[Any]:
    return source.column_names if isinstance(source, pa.Table | pa.RecordBatch) else list(source.columns)


def plain(table: pa.Table) -> pa.Table:
    """Types that few of Arrow's functions take become those that all do: views of texts and bytes (of polars), half
    floats, and extensions (UUIDs), which become what they are stored as.
    """
    schema = pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema])
    return table if schema == table.schema else table.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
        return pa.dictionary(kind.index_type, pa.string(), kind.ordered)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind


def column_values(table: pa.Table, name: str) -> np.ndarray:
    """(N,) a column as numpy: strings stay strings, missing strings become ''."""
    column = table.column(name).combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
        return np.array(["" if v is None else str(v) for v in column.to_pylist()], dtype=object)
    return np.asarray(column.to_numpy(zero_copy_only=False))


@once
def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a .npy ({"": array}) or .npz file by name; memory-mapped where possible; pickled objects refused.

    Raises:
        LabelfreeError: damaged, or pickled.
    """
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, EOF and value errors alike: the file is not a whole array file
        raise LabelfreeError(
            f"'{path}' cannot be read as an array: {error}.", "Save it anew with numpy.save."
        ) from None


def sidecar(folder: Path, names: Sequence[str], most: bool = False) -> pa.Table | None:
    """The table beside files (metadata.csv, labels.csv, or the only table in `folder`) in the order of `names`.

    Its first column whose values name most files ("a/b.png", or "b.png" where only one file is called so) ties rows to
    files; or else one most of whose values are such paths, one a row: few files may have labels. Files without a row
    get nulls.

    Args:
        folder: where the table lies.
        names: paths of the files, from the folder on.
        most: whether most files must have a row.

    Raises:
        LabelfreeError: two rows name one file, or a row names several files.
    """
    for path in tables_beside(folder):
        table = read_table(path)
        for key in table.column_names:
            values = [str(value) for value in table.column(key).to_pylist()]
            known = set(values)
            if sum(name in known or Path(name).name in known for name in names) * 2 > len(names):
                return table.take(pa.array(_rows_of(names, values, f"'{path}'"), pa.int64()))
            if not most and len(known) == len(values) and sum(name in known for name in names) * 2 > len(known):
                rows = {value: row for row, value in enumerate(values)}
                return table.take(pa.array([rows.get(name) for name in names], pa.int64()))
    return None


def tables_beside(folder: Path) -> list[Path]:
    """The tables in a folder that may be about its files: those with the usual names, or the only one."""
    tables = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in TABLES and not p.name.startswith(".")]
    return [p for p in tables if p.stem.lower() in BESIDE] or (tables if len(tables) == 1 else [])


def _rows_of(names: Sequence[str], values: Sequence[str], what: str) -> list[int | None]:
    """The row of each file in a column of names of files."""
    rows = {value: row for row, value in enumerate(values)}
    counts, called = Counter(values), Counter(Path(name).name for name in names)
    # a row "b.png" is of the file b.png of the folder itself, where there is one, and of no a/b.png
    own = set(names)
    found = [name if name in rows or Path(name).name in own else Path(name).name for name in names]
    for name, value in zip(names, found, strict=True):
        if counts[value] > 1:
            raise LabelfreeError(f"{what} has {counts[value]} rows for the file '{value}'.", "Keep one row a file.")
        if value in rows and value != name and called[value] > 1:
            raise LabelfreeError(
                f"{what} names '{value}', and {called[value]} files are called so, one of them '{name}'.",
                "Write the paths from the folder on.",
            )
    return [rows.get(value) for value in found]


def hash_of(*parts: object) -> str:
    """A short stable hash of the parts' texts and array bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, part.dtype)).encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(str(part).encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def hash_files(paths: Sequence[Path], root: Path) -> str:
    """Fingerprint of files: names, sizes, and some bytes of some (not times, so that a copy is the same source).

    Names and sizes alone do not tell pictures of two days of one camera apart.
    """
    named = (f"{p.relative_to(root) if p != root else p.name} {size_of(p)}" for p in paths)
    return hash_of(*named, *glimpses(paths))


def glimpses(paths: Sequence[Path]) -> list[str]:
    """What some of the files hold, which their names and sizes do not say."""
    return [_glimpse(paths[place]) for place in spaced(len(paths), GLIMPSES)] if paths else []


def _glimpse(path: Path) -> str:
    """Bytes from the middle and from the end of a file, in hexadecimal digits; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            size, found = os.fstat(file.fileno()).st_size, b""
            for start in (size // 2, size - GLIMPSE):
                file.seek(max(0, start))
                found += file.read(GLIMPSE)
            return found.hex()
    except OSError:
        return ""


def size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


# ---- names of files


def spelled(name: str) -> str:
    """A file's or folder's name as text that can be written: bytes in it that are none are spelled out ("caf\\xe9")."""
    return os.fsencode(name).decode(errors="backslashreplace")


def name_below(root: Path, path: Path) -> str:
    """What a file below `root` is called: its path from there on, `spelled`."""
    return spelled(path.relative_to(root).as_posix())


def names_files(values: Sequence[str], suffixes: Collection[str]) -> bool:
    """Whether nearly all of some strings are names of files that end so."""
    fitting = [v for v in values if len(v) < LONGEST and "\n" not in v and os.path.splitext(v)[1].lower() in suffixes]
    return bool(values) and len(fitting) >= NEARLY_ALL * len(values)


def listed_files(source: Any, suffixes: Collection[str]) -> list[Path] | None:
    """The files that a list of names is, nearly all of which end so; None for any other source.

    Raises:
        LabelfreeError: none of them is there.
    """
    if not isinstance(source, list | tuple) or not all(isinstance(item, str | Path) for item in source):
        return None
    if not names_files([str(item) for item in source[:HEAD_ROWS]], suffixes):
        return None
    paths = [Path(os.path.abspath(Path(item).expanduser())) for item in source]
    if not any(map(os.path.isfile, paths)):
        raise LabelfreeError(
            f"A list names {len(paths):,} files, none of which is there; '{source[0]}' for one.",
            "Write their paths as seen from the working directory, or whole.",
        )
    return paths


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all files lie below."""
    return Path(os.path.commonpath([path.parent for path in paths]))
