"""Where data lies: what every modality needs to find files, tables and the columns beside them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labelfree.errors import LabelfreeError

TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".jsonl", ".json")
ARRAYS = (".npy", ".npz")
#: Bytes of a text file that are read to tell what it holds.
HEAD_BYTES = 1 << 20


def is_address(source: object) -> bool:
    """Whether a source is the address of something that is no file (`sqlite:///shop.db`)."""
    return isinstance(source, str) and "://" in source


def existing(source: str | Path) -> Path:
    """The path, or LabelfreeError if nothing is there."""
    path = Path(source).expanduser()
    if not path.exists():
        parent = next((p for p in path.parents if p.exists()), None)
        raise LabelfreeError(f"There is nothing at '{source}'.", f"The nearest folder that exists is '{parent}'.")
    return path


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below `folder` with one of the suffixes (lower case), sorted by path; hidden files left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_table(path: Path) -> pa.Table:
    """A CSV, TSV, Parquet, Arrow/Feather or JSON-lines file as a table.

    Raises:
        LabelfreeError: it cannot be read as what its name says.
    """
    from pyarrow import feather, json, parquet

    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, _form(suffix))
        if suffix == ".parquet":
            return parquet.read_table(path)
        if suffix in (".arrow", ".feather"):
            return plain(feather.read_table(path))
        if suffix in (".jsonl", ".json"):
            return json.read_json(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabelfreeError(f"'{path}' cannot be read as {suffix[1:]}: {reason}.", "Check that it is whole.") from None
    raise LabelfreeError(f"'{path}' is not a table.", f"Tables end in {', '.join(TABLES)}.")


def read_head(path: Path, rows: int = 1000) -> pa.Table:
    """The first rows of what `read_table` would read, at the cost of these alone: for telling what a table holds.

    Raises:
        LabelfreeError: it cannot be read as what its name says.
    """
    from pyarrow import csv, json, parquet

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                first = next(file.iter_batches(rows, use_threads=False), None)
                return file.schema_arrow.empty_table() if first is None else pa.Table.from_batches([first])
        if suffix in (".csv", ".tsv", ".jsonl", ".json") and path.stat().st_size > HEAD_BYTES:
            with open(path, "rb") as file:
                whole = file.read(HEAD_BYTES)
            lines = io.BytesIO(whole[: whole.rfind(b"\n") + 1])
            found = json.read_json(lines) if "json" in suffix else csv.read_csv(lines, parse_options=_form(suffix))
            if len(found):
                return found.slice(0, rows)
    except (pa.ArrowException, OSError):
        pass  # a cell or a record may be longer than the head: the whole says what is wrong, if anything
    return read_table(path).slice(0, rows)


def frame(source: Any, rows: int | None = None) -> pa.Table | None:
    """A data frame (pandas, polars, whatever else speaks Arrow) or an Arrow table as a table; None for anything else.

    Args:
        rows: the first ones alone.

    Raises:
        LabelfreeError: it holds what no column can.
    """
    if not hasattr(source, "columns") or not (hasattr(source, "iloc") or hasattr(source, "__arrow_c_stream__")):
        return None
    if rows is not None:
        source = source.head(rows) if hasattr(source, "head") else source.slice(0, rows)
    try:
        if not hasattr(source, "iloc"):
            return plain(source if isinstance(source, pa.Table) else pa.table(source))
        renamed = source.set_axis([str(name) for name in source.columns], axis=1)
        places = range(len(renamed.columns))
        return pa.Table.from_arrays([array_of(renamed.iloc[:, i]) for i in places], list(renamed.columns))
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise LabelfreeError(
            f"The {type(source).__name__} is no table: {str(error).splitlines()[0]}.", "Give columns of equal length."
        ) from None


def array_of(values: Any) -> pa.Array:
    """A column; values of several types become text."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None or value != value else str(value) for value in values], pa.string())


def plain(table: pa.Table) -> pa.Table:
    """Views of texts and bytes, which polars makes and few of Arrow's functions take, become texts and bytes."""
    schema = pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema])
    return table if schema == table.schema else table.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
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


def _form(suffix: str) -> Any:
    from pyarrow import csv

    return csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)


def _read_csv(path: Path, form: Any) -> pa.Table:
    """Types are guessed from the first megabyte; from the whole file where that guess turns out to be wrong."""
    from pyarrow import csv

    try:
        return csv.read_csv(path, parse_options=form)
    except pa.ArrowInvalid as error:
        size = path.stat().st_size
        if "conversion error" not in str(error) or size >= 1 << 31:
            raise
        return csv.read_csv(path, parse_options=form, read_options=csv.ReadOptions(block_size=size + 1))


def column_values(table: pa.Table, name: str) -> np.ndarray:
    """(N,) a column as numpy: strings stay strings, missing strings become ''."""
    column = table.column(name).combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
        return np.array(["" if v is None else str(v) for v in column.to_pylist()], dtype=object)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a .npy ({"": array}) or .npz file by name; memory-mapped where possible; pickled objects refused.

    Raises:
        LabelfreeError: damaged, or pickled.
    """
    try:
        if path.suffix == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, EOF and value errors alike: the file is not a whole array file
        raise LabelfreeError(
            f"'{path}' cannot be read as an array: {error}.", "Save it anew with numpy.save."
        ) from None


def sidecar(folder: Path, names: Sequence[str]) -> pa.Table | None:
    """The table beside files (metadata.csv, labels.csv, or the only table in `folder`) in the order of `names`.

    Its first column whose values name the files ("a/b.png", or "b.png") ties rows to files; files without a row get
    nulls.
    """
    tables = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in TABLES and not p.name.startswith(".")]
    preferred = [p for p in tables if p.stem.lower() in ("metadata", "labels")] or (tables if len(tables) == 1 else [])
    for path in preferred:
        table = read_table(path)
        for key in table.column_names:
            rows = {str(value): row for row, value in enumerate(table.column(key).to_pylist())}
            order = [rows.get(name, rows.get(Path(name).name)) for name in names]
            if sum(row is not None for row in order) * 2 > len(names):
                return table.take(pa.array(order, pa.int64()))
    return None


def hash_of(*parts: object) -> str:
    """A short stable hash of the parts' texts and array bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.shape, part.dtype)).encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(str(part).encode() + b"\0")
    return digest.hexdigest()[:32]


def hash_files(paths: Sequence[Path], root: Path) -> str:
    """Fingerprint of files: names and sizes (not times, so that a copy is the same source)."""
    return hash_of(*(f"{p.relative_to(root) if p != root else p.name} {p.stat().st_size}" for p in paths))
