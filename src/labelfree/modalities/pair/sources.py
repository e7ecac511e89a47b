"""Where pairs come from: sides of different kinds, tied by row; each side is a source that its own modality opens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree import registry
from labelfree.data.characters import decode
from labelfree.data.encoded import encoded_columns
from labelfree.data.named import naming_columns, none_there
from labelfree.data.pictures import looks_like_picture
from labelfree.data.sound import looks_like_recording
from labelfree.data.sources import (
    BINARY,
    HEAD_ROWS,
    TABLES,
    concatenate,
    frame,
    is_hugging_face,
    list_files,
    parquet_head,
    read_head,
    read_table,
    schema_of,
    sidecar,
)
from labelfree.errors import LabelfreeError, nearest
from labelfree.files import existing

#: Kinds that are no side: a pair itself, and bytes, which everything is.
NO_SIDE = frozenset({"pair", "bytes"})
#: A column of texts is a caption where so many of its values differ and have several words: labels repeat themselves.
DISTINCT, WORDS, LOOK_AT = 0.8, 2.0, 1000
#: How sure a modality must be of a file.
SURE = 0.5


@dataclass(frozen=True)
class Side:
    """One side of the pairs, as it lies.

    Attributes:
        kind: name of its modality.
        source: what that modality opens.
        rows: (N,) int64 the place of each pair in it, -1 where the side is missing; None: row by row.
        column: of the source, where it is a table; "" where there is no choice.
        given_by: the column that names its files, or held it, where the source is no table; "" where there is none.
        names: of the files that places are among, where the source is a folder.
    """

    kind: str
    source: Any
    rows: np.ndarray | None = None
    column: str = ""
    given_by: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """Sides that were found together.

    Attributes:
        sides: by name: the kind, and a number from the second of a kind on ("image", "image-2").
        table: the other columns, row by row (what may serve as a label), if there are any.
        words: what a person calls it.
        absent: the refusal of a column that names files of which none is there, where there is one.
    """

    sides: Mapping[str, Side]
    words: str
    table: pa.Table | None = None
    absent: LabelfreeError | None = None


@dataclass
class _Collected:
    sides: dict[str, Side] = field(default_factory=dict)

    def add(self, side: Side) -> None:
        number = 1 + sum(other.kind == side.kind for other in self.sides.values())
        self.sides[side.kind if number == 1 else f"{side.kind}-{number}"] = side


def kind_of(name: str) -> str:
    """The kind of a side, by its name."""
    return name.split("-")[0]


def kinds() -> list[str]:
    """What a side can be."""
    return [name for name in registry.modalities() if name not in NO_SIDE]


def find_sides(source: Any, wanted: Mapping[str, str], known: Sequence[str] = (), glance: bool = False) -> Found:
    """The sides that a source ties together.

    Args:
        source: a dictionary of sources by side; a table of which columns are sides (files by path, encoded bytes,
            texts); a folder of files with a table of texts beside them, or of files of several kinds with equal names.
        wanted: kinds of columns that the user named, "" to find out.
        known: sides that an encoder was trained on: then one of them is enough.
        glance: of tables, look at the first rows of the first one only: enough to tell which sides there are.

    Raises:
        LabelfreeError: fewer than two sides (or none of the known ones).
    """
    found = _find(source, wanted, glance)
    if known:
        found = replace(found, sides={name: found.sides[name] for name in known if name in found.sides})
        if not found.sides:
            found = replace(found, sides=_alone(source, known))
    what = f"'{source}'" if isinstance(source, str | Path) else "The source"
    if known and not found.sides:
        raise LabelfreeError(f"{what} has none of the sides {', '.join(known)}.", "Name the columns: columns=a,b.")
    if not known and len(found.sides) < 2:
        if found.absent:
            raise found.absent
        has = ", ".join(found.sides) or "none"
        raise LabelfreeError(
            f"{what} should tie two or more kinds of data by row, but one side was found at most ({has}).",
            "Name the columns (columns=picture,caption), or give a dictionary such as {'image': …, 'text': …}.",
        )
    return found


def _find(source: Any, wanted: Mapping[str, str], glance: bool) -> Found:
    if isinstance(source, Mapping) and not is_hugging_face(source):
        return _from_mapping(source)
    if isinstance(source, str | Path):
        path = existing(source)
        if path.is_file() and path.suffix.lower() not in TABLES:
            return Found({}, "a file")
        files = _files_by_kind(path) if path.is_dir() else {}
        if not files:
            return _from_tables(path, wanted, glance)
        return _from_files(path, files, wanted)
    if is_hugging_face(source):
        encoded = [(name, type(f).__name__.lower()) for name, f in source.features.items()]
        light = source.select_columns([name for name, f in encoded if f == "value"]).with_format("arrow")[:]
        binary = [Side(kind, source, None, name) for name, kind in encoded if kind in kinds()]
        return _from_columns(light, binary, Path(), wanted, "a Hugging Face dataset")
    if (table := frame(source)) is not None:
        light = table.drop_columns(encoded_columns(table.schema))
        binary = [side for name in encoded_columns(table.schema) if (side := _in_memory(table, name))]
        return _from_columns(light, binary, Path(), wanted, "a table")
    return Found({}, type(source).__name__)


def _alone(source: Any, known: Sequence[str]) -> dict[str, Side]:
    """The one known side that the whole source looks like, if any."""
    sure = {name: registry.modalities()[kind_of(name)].guess(source)[0] for name in known}
    best = max(sure, key=lambda name: sure[name])
    return {best: Side(kind_of(best), source)} if sure[best] > 0 else {}


# ---- a dictionary of sources


def _from_mapping(source: Mapping[str, Any]) -> Found:
    """Keys that name a kind are sides; other arrays are columns."""
    sides = {name: _without_gaps(kind_of(name), value) for name, value in source.items() if kind_of(name) in kinds()}
    others = {name: value for name, value in source.items() if name not in sides}
    table = pa.table({name: pa.array(list(value)) for name, value in others.items()}) if others else None
    return Found(sides, "a dictionary of " + " and ".join(sides), table)


def _without_gaps(kind: str, values: Any) -> Side:
    """A list, or any other row of objects, may have nothing, and of texts a blank one, where a row lacks the side."""
    values = _listed(values)
    if not isinstance(values, list | tuple):
        return Side(kind, values)
    there = np.array([not _is_missing(value) for value in values], dtype=bool)
    kept = [value for value, is_there in zip(values, there, strict=True) if is_there]
    return Side(kind, values) if there.all() else Side(kind, kept, _counted(there))


def _listed(values: Any) -> Any:
    """Objects of a Series, of an array or of Arrow as a list; anything else as it is."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.to_pylist()
    objects = len(getattr(values, "shape", ())) == 1 and np.asarray(values).dtype.kind in "OUS"
    return np.asarray(values).tolist() if objects else values


def _is_missing(value: Any) -> bool:
    """None, NaN, what pandas has in their place, and blank texts."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def _counted(there: np.ndarray) -> np.ndarray:
    """(N,) bool → (N,) int64: places among those that are there, -1 elsewhere."""
    return np.where(there, np.cumsum(there) - 1, -1)


# ---- files


def _files_by_kind(folder: Path) -> dict[str, list[str]]:
    """Names of the files of each kind below a folder, for kinds that live in files of their own."""
    files = [path for path in list_files(folder) if path.suffix.lower() not in TABLES]
    known = {suffix: _kind_of_file(path) for suffix, path in {p.suffix.lower(): p for p in files}.items()}
    found: dict[str, list[str]] = {}
    for path in files:
        if kind := known.get(path.suffix.lower()):
            found.setdefault(kind, []).append(path.relative_to(folder).as_posix())
    return found


def _kind_of_file(path: Path) -> str:
    sure = {name: registry.modalities()[name].guess(path)[0] for name in kinds()}
    best = max(sure, key=lambda name: sure[name])
    return best if sure[best] >= SURE else ""


def _from_files(folder: Path, files: Mapping[str, list[str]], wanted: Mapping[str, str]) -> Found:
    """Files of several kinds that their names tie, or those of the most frequent kind and a table beside them.

    Raises:
        LabelfreeError: names tie files of two kinds, but which of them is open, and there is no table.
    """
    found, repeated = _by_stem(folder, files)
    if found is None:
        main = max(files, key=lambda kind: len(files[kind]))
        found = _with_table_beside(folder, main, files[main], wanted)
    if repeated and len(found.sides) < 2:
        raise repeated
    return found


def _by_stem(folder: Path, files: Mapping[str, list[str]]) -> tuple[Found | None, LabelfreeError | None]:
    """Files of several kinds whose names are the same but for the suffix (7.png and 7.txt), or but for the first
    folder, or for all folders; or why it is open which files of equal names belong together.
    """
    repeated = None
    for stem in (_path_stem, _stem_below, _file_stem):
        stems = {kind: [stem(name) for name in names] for kind, names in files.items()}
        every = sorted(set().union(*stems.values()))
        if len(every) == sum(len(set(own)) for own in stems.values()):
            continue  # ties nothing
        if repeated := _repeated(folder, stems):
            break  # the others drop more of a name
        sides = {kind: Side(kind, folder, _by_name(own, every), names=files[kind]) for kind, own in stems.items()}
        return Found(sides, f"{len(every):,} names with " + " and ".join(sides)), None
    return None, repeated


def _repeated(folder: Path, stems: Mapping[str, Sequence[str]]) -> LabelfreeError | None:
    """The refusal of names that two files of one kind have."""
    for kind, own in stems.items():
        name, count = Counter(own).most_common(1)[0]
        if count > 1:
            return LabelfreeError(
                f"'{folder}' has {count} files of {kind} data called '{name}', so that names do not say which of them "
                "belongs to a file of another kind.",
                "Keep one file of a kind and name, or name the files of each row in a table, a column a side.",
            )
    return None


def _path_stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _stem_below(name: str) -> str:
    """Without the first folder, of which each kind may have its own."""
    return _path_stem(name.split("/", 1)[-1])


def _file_stem(name: str) -> str:
    return Path(name).stem


def _by_name(own: Sequence[str], every: Sequence[str]) -> np.ndarray:
    """(N,) place of each name among those of the files of this kind, which come sorted as their modality sorts them."""
    place = {stem: row for row, stem in enumerate(own)}
    return np.array([place.get(stem, -1) for stem in every], dtype=np.int64)


def _with_table_beside(folder: Path, kind: str, names: Sequence[str], wanted: Mapping[str, str]) -> Found:
    """Files of one kind, and a column of texts beside them."""
    most = not wanted  # a few texts may be labels; that all others have none was not meant
    table = sidecar(folder, names, most) or sidecar(folder.parent, [f"{folder.name}/{name}" for name in names], most)
    sides = _Collected({kind: Side(kind, folder)})
    if table is not None and kind != "text":
        for name in _text_columns(table, wanted):
            sides.add(_texts(table, name))
    return Found(sides.sides, f"{len(names):,} files of {kind} data and the table beside them", table)


# ---- tables


def _from_tables(path: Path, wanted: Mapping[str, str], glance: bool) -> Found:
    paths = [path] if path.is_file() else list_files(path, TABLES)
    if not paths:
        raise LabelfreeError(f"'{path}' holds no files that could be sides.", "Name a folder or a table with some.")
    light = [_light(one, glance) for one in (paths[:1] if glance else paths)]
    binary = []
    if paths[0].suffix.lower() in BINARY:
        for name, start in _starts(paths[0]).items():
            if kind := sniff(start):
                binary.append(Side(kind, path, None, name))
    folder = path.parent if path.is_file() else path
    return _from_columns(concatenate(light, f"The tables in '{path}'"), binary, folder, wanted, f"'{path.name}'")


def _light(path: Path, glance: bool) -> pa.Table:
    """A table, or at a glance its first rows, without its columns of encoded bytes."""
    if path.suffix.lower() != ".parquet":
        table = read_head(path) if glance else read_table(path)
        return table.drop_columns(encoded_columns(table.schema))
    schema = schema_of(path)
    heavy = set(encoded_columns(schema))
    names = [name for name in schema.names if name not in heavy]
    return parquet_head(path, names, HEAD_ROWS) if glance else read_table(path, names)


def _starts(path: Path) -> dict[str, bytes]:
    """The first bytes of the first item of each column of encoded bytes."""
    if path.suffix.lower() == ".parquet":
        head = parquet_head(path, encoded_columns(schema_of(path)), 16)
    else:
        head = read_head(path)
    return {name: _first_bytes(head.column(name)) for name in encoded_columns(head.schema)}


def _first_bytes(column: Any) -> bytes:
    for value in column.to_pylist():
        content = value.get("bytes") if isinstance(value, dict) else value
        if content:
            return bytes(content[:16])
    return b""


def sniff(start: bytes) -> str:
    """The kind of encoded data that begins with these bytes; "" for none that is known."""
    if looks_like_picture(start):
        return "image"
    if looks_like_recording(start):
        return "audio"
    if start[4:8] == b"ftyp" or start.startswith((b"\x1aE\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3")):
        return "video"
    return ""


def _in_memory(table: pa.Table, name: str) -> Side | None:
    """A column of encoded bytes of a table in memory."""
    values = table.column(name).to_pylist()
    contents = [value.get("bytes") if isinstance(value, dict) else value for value in values]
    there = np.array([bool(content) for content in contents])
    kind = sniff(_first_bytes(table.column(name)))
    return Side(kind, [c for c in contents if c], _counted(there), given_by=name) if kind else None


def _from_columns(
    light: pa.Table, binary: Sequence[Side], folder: Path, wanted: Mapping[str, str], words: str
) -> Found:
    """Columns of a table as sides: encoded bytes, paths of files, texts."""
    missing = [name for name in wanted if name not in light.column_names and name not in {b.column for b in binary}]
    if missing:
        has = [*light.column_names, *(side.column for side in binary)]
        raise LabelfreeError(
            f"{words} has no column '{missing[0]}': it has {', '.join(has)}.", nearest(missing[0], has)
        )
    collected = _Collected()
    for side in binary:
        if not wanted or side.column in wanted:
            collected.add(side)
    paths = _path_columns(light, folder)
    for name, kind in paths.items():
        if not wanted or name in wanted:
            collected.add(_paths(light, name, kind, folder))
    names = [name for name in naming_columns(light) if name not in paths]
    absent = none_there(light, [name for name in names if not wanted or name in wanted], folder)
    if absent and wanted:
        raise absent
    texts = light.drop_columns([*paths, *(name for name in names if name not in wanted)])
    for name in _text_columns(texts, {k: v for k, v in wanted.items() if k in texts.column_names}, not wanted):
        collected.add(_texts(light, name))
    return Found(collected.sides, words, light, absent)


def _path_columns(table: pa.Table, folder: Path) -> dict[str, str]:
    """Columns whose values name files that are there, and the kind of these."""
    found, naming = {}, naming_columns(table)
    for name in _string_columns(table):
        values = [value for value in table.column(name).slice(0, LOOK_AT).to_pylist() if value][:50]
        # texts may be no file names at all, which os.path takes for an answer and pathlib for an error
        files = [folder / value for value in values if os.path.isfile(folder / value)]
        enough = name in naming or 2 * len(files) >= len(values)
        if files and enough and (kind := _kind_of_file(files[0])):
            found[name] = kind
    return found


def _paths(table: pa.Table, name: str, kind: str, folder: Path) -> Side:
    """Files named by a column; a row without a value, or whose file is not there or no text, lacks the side."""
    values = table.column(name).to_pylist()
    files = [folder / value if value and os.path.isfile(folder / value) else None for value in values]
    items: list[Any] = [file and _text_of(file) for file in files] if kind == "text" else files
    there = np.array([item is not None for item in items], dtype=bool)
    return Side(kind, [item for item in items if item is not None], _counted(there), given_by=name)


def _text_of(file: Path) -> str | None:
    """The text in a file; None where it is blank, or no text."""
    try:
        text = decode(file.read_bytes())
    except (OSError, ValueError):
        return None
    return text if text.strip() else None


def _texts(table: pa.Table, name: str) -> Side:
    """A column of texts; blank ones are missing."""
    texts = table.column(name).cast(pa.large_string())
    blank = pc.equal(pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), 0).to_numpy()
    rows = np.where(blank, -1, np.arange(len(texts)))
    return Side("text", pa.table({name: texts}), rows)


def _text_columns(table: pa.Table, wanted: Mapping[str, str], guess: bool = True) -> list[str]:
    """Columns of texts: those wanted, or, to `guess`, the one whose texts are captions rather than labels."""
    if wanted:
        odd = next((name for name in wanted if name not in table.column_names), None)
        if odd is not None:
            has = ", ".join(table.column_names)
            raise LabelfreeError(f"The table has no column '{odd}': it has {has}.", nearest(odd, table.column_names))
        return [name for name in wanted if name in _string_columns(table)]
    found = {name: words_of(table, name) for name in _string_columns(table)} if guess else {}
    return [max(found, key=lambda name: found[name])] if any(found.values()) else []


def _string_columns(table: pa.Table) -> list[str]:
    test: list[Callable[[pa.DataType], bool]] = [pa.types.is_string, pa.types.is_large_string]
    return [f.name for f in table.schema if any(is_text(f.type) for is_text in test)]


def words_of(table: pa.Table, name: str) -> float:
    """Mean words of a column of captions; 0 for one of labels, names of files or other identifiers."""
    values = [value for value in table.column(name).slice(0, LOOK_AT).to_pylist() if value and value.strip()]
    if not values or len(set(values)) < DISTINCT * len(values):
        return 0.0
    words = float(np.mean([len(value.split()) for value in values]))
    return words if words >= WORDS else 0.0
