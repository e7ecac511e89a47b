"""What is read from a path must be there; what is written appears under its name only when it is whole."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from labelfree.errors import LabelfreeError

#: Kinds of tables that are written.
TABLES = (".csv", ".parquet", ".jsonl")
#: What a part of an address's query that holds a secret looks like ("password=…", "odbc_connect=…;PWD=…").
SECRET = re.compile(r"(password|passwd|pwd|token|key|secret)\w*\s*=", re.IGNORECASE)
#: Names that files and folders have while they are written, or are set aside; the first part is the name of the whole.
BEGUN = re.compile(r"(.+?)\.\d+\.(?:part|part\.old|new)(?:\.\d+\.part)?")
#: Why a file may not be written though nothing is wrong with what is written.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def is_address(source: object) -> bool:
    """Whether a source is the address of something that is no file (`sqlite:///shop.db`)."""
    return isinstance(source, str) and "://" in source


def without_secrets(source: str | Path) -> str:
    """An address as it may be shown and written down: without passwords, keys and the like; of a path all."""
    if not is_address(source):
        return str(source)
    scheme, _, rest = str(source).partition("://")
    place, _, query = re.sub("^([^:/?@]*):.*@", r"\1@", rest).partition("?")
    told = "&".join(part for part in query.split("&") if not SECRET.search(unquote_plus(part)))
    return f"{scheme}://{place}{'?' if told else ''}{told}"


def existing(source: str | Path) -> Path:
    """The path, or LabelfreeError if nothing is there."""
    path = Path(source).expanduser()
    if not path.exists():
        parent = next((p for p in path.parents if p.exists()), None)
        what = f"There is nothing at '{without_secrets(source)}'."
        raise LabelfreeError(what, f"The nearest folder that exists is '{parent}'.")
    return path


def all_there(sources: Iterable[Any]) -> None:
    """Raises LabelfreeError where a path among sources is not there: before seconds of imports, where it is known."""
    for source in sources:
        if isinstance(source, str) and not is_address(source):
            existing(source)


def writable(out: str | Path, force: bool, formats: Sequence[str] = ()) -> Path:
    """The path of what is to be written, the folder around it made.

    Args:
        out: a file, or a folder where there are no `formats`.
        force: it may be replaced.
        formats: suffixes of the files that can be written.

    Raises:
        LabelfreeError: another kind of file; it exists and `force` is false; a folder, or where no folder can be.
    """
    path = Path(out).expanduser()
    if formats and path.suffix.lower() not in formats:
        raise LabelfreeError(f"'{out}' is not a kind of file that can be written.", f"Use {', '.join(formats)}.")
    if formats and path.is_dir():
        raise LabelfreeError(f"'{path}' is a folder.", "Name a file.")
    if path.exists() and not force:
        raise LabelfreeError(f"'{path}' exists already.", "Name another file, or allow it to be replaced with --force.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_place(path, error) from None
    return path


def no_place(path: Path, error: OSError) -> LabelfreeError:
    """Why `path` cannot be written to: something that is no folder is on the way, or nobody may write there."""
    around = next((place for place in path.parents if place.exists()), path)
    reason = error.strerror if around.is_dir() else f"'{around}' is no folder"
    return LabelfreeError(f"There is no place for '{path}': {reason}.", "Name another place.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder under; it takes the place of `path` when all went well.

    Where something fails, what was at `path` stays, and nothing is left beside it. Several processes may write the same
    at once: the last stays.

    Raises:
        LabelfreeError: the disk is full or the folder cannot be written. Other errors of the writer are its own.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(beside)
        with _explained(path, beside):
            yield beside
        with _explained(path):
            _put(beside, path)
    finally:
        with suppress(OSError):
            _remove(beside)


@contextmanager
def _explained(path: Path, beside: Path | None = None) -> Iterator[None]:
    """Say why `path` could not be written; of a writer's errors, only of those that it met in writing to `beside`."""
    try:
        yield
    except OSError as error:
        if beside is not None and not _stood_in_the_way(error, beside):
            raise
        reason = error.strerror or error
        raise LabelfreeError(f"'{path}' could not be written: {reason}.", "Free space, or write elsewhere.") from None


def _stood_in_the_way(error: OSError, beside: Path) -> bool:
    """Whether there was no room or no leave to write; an open file that cannot grow does not say which one it is."""
    where = error.filename
    return error.errno in UNWRITABLE and (not isinstance(where, str) or Path(where).is_relative_to(beside))


def _put(new: Path, path: Path) -> None:
    """Move `new` to `path`, over a file in one move; a folder is set aside meanwhile, and is back where that fails."""
    if not new.is_dir() or not os.path.lexists(path):
        os.replace(new, path)
        return
    old = new.with_name(new.name + ".old")
    _remove(old)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    with suppress(OSError):
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def standing(path: Path) -> Path:
    """`path`, or what `replacing` had set aside for it when its process was killed between the two renames."""
    aside = () if path.exists() else path.parent.glob(f"{glob.escape(path.name)}.*.part.old")
    return max(aside, key=lambda old: old.stat().st_mtime, default=path)


def tidy(folder: Path) -> None:
    """Clear up what killed writers left in a folder that nobody else writes to: what they had set aside is back."""
    left = [(path, begun[1]) for path in folder.glob("*") if (begun := BEGUN.fullmatch(path.name))]
    for path, name in left:
        if path.suffix == ".old" and (last := standing(folder / name)) != folder / name:
            os.replace(last, folder / name)
    for path, _ in left:
        _remove(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is on the disk, whole, when this returns; see `replacing`."""
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, so that a reader never sees half a file; see `write_bytes`."""
    write_bytes(path, (json_text(value, indent=2) + "\n").encode())


def write_new_json(path: Path, value: Any) -> bool:
    """Write JSON, whole or not at all, unless there is such a file; false where another writer came first."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    write_json(beside, value)
    try:
        os.link(beside, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        return False
    except OSError:  # no links on this file system
        if path.exists():
            return False
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def write_table(columns: Mapping[str, Any], out: str | Path, force: bool = False) -> Path:
    """Write columns as the kind of file that `out` names, one of `TABLES`; see `replacing`.

    Raises:
        LabelfreeError: another kind of file, or one that exists and `force` is false.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    path = writable(out, force, TABLES)
    table = pa.table(dict(columns))
    with replacing(path) as beside:
        if path.suffix.lower() == ".parquet":
            parquet.write_table(table, beside)
        elif path.suffix.lower() == ".csv":
            csv.write_csv(table, beside)
        else:
            beside.write_text("".join(json_text(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises LabelfreeError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabelfreeError(f"'{path}' is missing.", "Is this the folder of a run?") from None
    except ValueError as error:
        raise LabelfreeError(f"'{path}' is damaged: {error}.", "Restore it from a copy, or train again.") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file with one a line, but for a line that was cut by whatever ended its writer; none of no file."""
    # other ends of lines, as str.splitlines knows them, stand in texts
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON of plain values, arrays and paths. Numbers that are not finite, which JSON does not know, are null.

    Names of files that are no text can be encoded, and are read as they were: JSON has an escape for their bytes.

    Raises:
        TypeError: a value of another kind.
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def infinite(value: Any, place: str = "") -> str | None:
    """Where among values one is not finite ("scale.2"), which a file of JSON could not give back; None if nowhere."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (infinite(item, f"{place}.{key}" if place else str(key)) for key, item in inner)
    return next((where for where in found if where is not None), None)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
