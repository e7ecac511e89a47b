"""Where text comes from: files, tables, lists; each as documents by their index."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelfree.data.batch import Sample, Unreadable
from labelfree.data.characters import HEAD, decode, refuse_binary
from labelfree.data.columns import is_words
from labelfree.data.dataset import Dataset, Description
from labelfree.data.delimited import nameless
from labelfree.data.named import naming_columns
from labelfree.data.once import kept
from labelfree.data.sources import (
    TABLES,
    column_values,
    common_folder,
    concatenate,
    frame,
    hash_files,
    hash_of,
    list_files,
    listed_files,
    name_below,
    read_table,
    sidecar,
    size_of,
    spelled,
    what_is_in,
)
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, nearest, reason_of
from labelfree.files import existing

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".log")
#: Of these, the endings by which a list of strings is known to name files: others may end other words.
LISTED = (".txt", ".md")

Encode = Callable[[list[str]], list[np.ndarray]]
Cut = Literal["auto", "file", "paragraph", "line"]


class Documents(Dataset):
    """Documents by their index; `read` gives them as ids, `texts` as they are.

    Attributes:
        encode: texts → ids; set by the modality.
        words: what a person calls the source ("1,203 text files").
        modality: the name of the kind of data that they are read as.
        unit: what they are as long as.
    """

    encode: Encode
    words: str
    modality: str = "text"
    unit: str = "characters"

    @abstractmethod
    def texts(self, indices: Sequence[int]) -> list[str | Unreadable]:
        """The documents as they are."""

    @abstractmethod
    def characters(self) -> np.ndarray:
        """(N,) int64: about how many characters each has; 0 where it is empty."""

    @abstractmethod
    def chosen(self, rows: np.ndarray) -> Documents:
        """Only some documents, counted anew."""

    def with_encode(self, encode: Encode) -> Documents:
        """The same documents, encoded otherwise."""
        other = copy.copy(self)
        other.encode = encode
        return other

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        texts = self.texts(indices)
        ids = iter(self.encode([text for text in texts if isinstance(text, str)]))
        return [
            Sample(next(ids), int(index)) if isinstance(text, str) else text
            for index, text in zip(indices, texts, strict=True)
        ]

    def known_unreadable(self) -> list[Unreadable]:
        """Documents that a quick look shows to be no text."""
        return []

    def own_values(self, sample: Sample) -> np.ndarray:
        """Nothing of a text that is encoded as no text is."""
        return sample.data[:0] if np.array_equal(sample.data, self.encode([""])[0]) else sample.data

    def describe(self) -> Description:
        sizes, bad = self.characters(), self.known_unreadable()
        empty = int((sizes == 0).sum())
        typical = float(np.median(sizes)) if len(sizes) else 0.0
        facts = {"source": self.words, self.unit: f"{sizes.sum():,}", "typical length": f"{typical:,.0f} {self.unit}"}
        if empty:
            facts["empty"] = f"{empty:,}"
        if bad:
            facts["unreadable"] = f"{len(bad):,}"
        numbers = {"documents": len(sizes), "characters": float(sizes.sum()), "length": typical, "empty": empty}
        return Description(self.modality, len(self), facts, numbers)


class Files(Documents):
    """A document a file, read when it is asked for."""

    def __init__(self, paths: Sequence[Path], root: Path, encode: Encode) -> None:
        self.paths, self.root, self.encode = list(paths), root, encode
        self.words = f"{len(paths):,} text files"
        self._beside: pa.Table | None = None
        self._looked = False

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return name_below(self.root, self.paths[index])

    def texts(self, indices: Sequence[int]) -> list[str | Unreadable]:
        found: list[str | Unreadable] = []
        for index in indices:
            try:
                found.append(decode(self.paths[index].read_bytes()))
            except (OSError, ValueError) as error:
                found.append(Unreadable(int(index), self.name(index), reason_of(error)))
        return found

    def characters(self) -> np.ndarray:
        return np.array([max(0, size_of(path)) for path in self.paths], dtype=np.int64)

    def chosen(self, rows: np.ndarray) -> Documents:
        other = copy.copy(self)
        other.paths = [self.paths[row] for row in rows]
        return other

    def known_unreadable(self) -> list[Unreadable]:
        bad = []
        for index, path in enumerate(self.paths):
            reason = not_text(path)
            if reason:
                bad.append(Unreadable(index, self.name(index), reason))
        return bad

    @kept
    def fingerprint(self) -> str:
        return hash_files(self.paths, self.root)

    @property
    def beside(self) -> pa.Table | None:
        """The table beside the files, in their order; only looked for when a label is asked for."""
        if not self._looked:
            self._beside = sidecar(self.root, [self.name(i) for i in range(len(self))]) if self.root.is_dir() else None
            self._looked = True
        return self._beside

    def columns(self) -> Sequence[str]:
        return ["folder", *(self.beside.column_names if self.beside is not None else ())]

    def column(self, name: str) -> np.ndarray:
        if name == "folder":
            return np.array([spelled(path.parent.name) for path in self.paths], dtype=object)
        if self.beside is None or name not in self.beside.column_names:
            return super().column(name)
        return column_values(self.beside, name)


class Rows(Documents):
    """A document a row of a table that is held in memory as it is stored.

    Arguments:
        unreadable: rows that are empty because they cannot be read; of documents cut from `files` files, such files.
    """

    def __init__(
        self,
        table: pa.Table,
        column: str,
        encode: Encode,
        words: str,
        stamp: str,
        unreadable: Sequence[Unreadable] = (),
        files: int = 0,
    ) -> None:
        self.encode, self.words, self.text_column = encode, words, column
        self.unreadable, self._files = unreadable, files
        # in one piece: taking rows from many joins them first, each time
        self._text: pa.Array = table.column(column).cast(pa.large_string()).combine_chunks()
        self._others = table.drop_columns([column])
        self._stamp = stamp
        self._numbers = np.arange(len(table))

    def __len__(self) -> int:
        return len(self._text)

    def texts(self, indices: Sequence[int]) -> list[str | Unreadable]:
        return [text or "" for text in self._text.take(pa.array(indices, pa.int64())).to_pylist()]

    def source_count(self) -> int:
        return self._files or len(self)

    def known_unreadable(self) -> list[Unreadable]:
        return list(self.unreadable)

    def characters(self) -> np.ndarray:
        length = pc.utf8_length(pc.utf8_trim_whitespace(self._text))
        return pc.fill_null(length, 0).to_numpy().astype(np.int64)

    def chosen(self, rows: np.ndarray) -> Documents:
        other = copy.copy(self)
        take = pa.array(rows, pa.int64())
        other._text, other._others = self._text.take(take), self._others.take(take)
        other._numbers = self._numbers[rows]
        return other

    def name(self, index: int) -> str:
        return f"row {self._numbers[index]}"

    def fingerprint(self) -> str:
        return hash_of(self._stamp, self.text_column, len(self))

    def columns(self) -> Sequence[str]:
        return self._others.column_names

    def column(self, name: str) -> np.ndarray:
        if name not in self._others.column_names:
            return super().column(name)
        return column_values(self._others, name)


def not_text(path: Path) -> str:
    """Why a file is no text, by a look at its beginning; nothing if it is."""
    try:
        with path.open("rb") as file:
            refuse_binary(file.read(HEAD))
    except (OSError, ValueError) as error:
        return reason_of(error)
    return ""


def text_files(folder: Path) -> list[Path]:
    """Files with a suffix of text below `folder`; where there are none, those without any suffix."""
    found = list_files(folder, SUFFIXES)
    if found:
        return found
    return [path for path in list_files(folder, _odd_suffixes(folder)) if not not_text(path)]


def _odd_suffixes(folder: Path) -> set[str]:
    """No suffix, and numbers (as the messages of a mail archive are named)."""
    suffixes = {path.suffix.lower() for path in list_files(folder)}
    return {suffix for suffix in suffixes if suffix == "" or suffix[1:].isdigit()}


def split(text: str, cut: Cut) -> list[str]:
    """A text as its paragraphs (blank lines between) or lines, or ("auto") as lines where there is no blank one."""
    text = text.replace("\r\n", "\n").strip()
    parts = text.split("\n\n") if cut == "paragraph" or (cut == "auto" and "\n\n" in text) else text.splitlines()
    return [part.strip() for part in parts if part.strip()]


def text_column(table: pa.Table, wanted: str | None, what: str) -> str:
    """The column of text: `wanted`, else the string column whose texts are longest on average and name no files.

    Raises:
        LabelfreeError: there is none.
    """
    strings = [
        field.name
        for field in table.schema
        if is_words(field.type) or (pa.types.is_dictionary(field.type) and is_words(field.type.value_type))
    ]
    if wanted:
        if wanted not in table.column_names:
            has = ", ".join(table.column_names[:20])
            raise LabelfreeError(f"{what} has no column '{wanted}': it has {has}.", nearest(wanted, table.column_names))
        if wanted not in strings:
            raise LabelfreeError(f"Column '{wanted}' of {what} holds {table.schema.field(wanted).type}, not text.")
        return wanted
    if not strings:
        kinds = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
        raise LabelfreeError(f"{what} has no column of text: it has {kinds or 'no columns'}.", "Name another source.")
    names = naming_columns(table)
    texts = [name for name in strings if name not in names]
    if not texts:
        raise LabelfreeError(
            f"{what} has no column of text: '{names[0]}' names files.",
            f"Name their kind (--modality image), or write column={names[0]} to learn the names themselves.",
        )
    return max(texts, key=lambda name: mean_length(table, name))


def mean_length(table: pa.Table, name: str) -> float:
    """Mean number of characters of a string column's first rows."""
    values = [str(value) for value in table.column(name).slice(0, 1000).to_pylist() if value is not None]
    return float(np.mean([len(value) for value in values])) if values else 0.0


def open_documents(source: Any, column: str | None, cut: Cut, encode: Encode) -> Documents:
    """Open any source of text.

    Raises:
        LabelfreeError: nothing there, no text in it, or all of it empty.
    """
    if isinstance(source, Documents):
        return source.with_encode(encode)
    if isinstance(source, str | Path):
        documents = _from_path(existing(source), column, cut, encode)
    elif (paths := listed_files(source, LISTED)) is not None:
        documents = _from_files(paths, common_folder(paths), cut, encode)
    else:
        table, words = _in_memory(source)
        name = text_column(table, column, words)
        documents = Rows(table, name, encode, f"{len(table):,} texts of {words}", _stamp(table.column(name)))
    if not len(documents) or not documents.characters().any():
        what = f"'{source}'" if isinstance(source, str | Path) else "The source"
        raise LabelfreeError(f"{what} holds no text: {len(documents)} documents, all empty.", "Name another source.")
    return documents


def _from_path(path: Path, column: str | None, cut: Cut, encode: Encode) -> Documents:
    if path.is_file() and path.suffix.lower() in TABLES:
        return _from_tables([path], path.parent, column, encode)
    if path.is_file():
        reason = not_text(path)
        if reason:
            raise LabelfreeError(f"'{path}' cannot be read: {reason}.", "Name a text file, a table or a folder.")
        return _cut_files([path], path.parent, cut, encode) if cut != "file" else Files([path], path.parent, encode)
    files, tables = text_files(path), list_files(path, TABLES)
    if files:
        return _from_files(files, path, cut, encode)
    if tables:
        return _from_tables(tables, path, column, encode)
    raise LabelfreeError(
        f"'{path}' holds no text: files ending in {', '.join((*SUFFIXES, *TABLES))} were expected, "
        f"found: {what_is_in(path)}.",
        "Name a folder of texts, or another modality.",
    )


def _from_files(paths: Sequence[Path], root: Path, cut: Cut, encode: Encode) -> Documents:
    return _cut_files(paths, root, cut, encode) if cut in ("paragraph", "line") else Files(paths, root, encode)


def _from_tables(paths: Sequence[Path], root: Path, column: str | None, encode: Encode) -> Documents:
    tables, unreadable, start = [], [], 0
    for path in paths:
        ragged: dict[int, str] = {}
        tables.append(read_table(path, ragged=ragged))
        unreadable += [Unreadable(start + row, f"{path.name}: row {row}", why) for row, why in ragged.items()]
        start += len(tables[-1])
    name = text_column(tables[0], column, f"'{paths[0].name}'")
    table = concatenate(tables, f"The {len(paths)} tables below '{root}'")
    where = f"'{paths[0].name}'" if len(paths) == 1 else f"{len(paths):,} tables"
    where += "; the first row holds no names" if nameless(table.column_names) else ""
    words = f"{len(table):,} texts, column '{name}' of {where}"
    return Rows(table, name, encode, words, hash_files(paths, root), unreadable)


def _cut_files(paths: Sequence[Path], root: Path, cut: Cut, encode: Encode) -> Documents:
    """Paragraphs or lines of files as rows, the file's folder beside them."""
    texts: list[str] = []
    folders: list[str] = []
    unreadable: list[Unreadable] = []
    files = Files(paths, root, encode)
    for number, text in enumerate(files.texts(range(len(files)))):
        if isinstance(text, str):
            parts = split(text, cut)
            texts += parts
            folders += [spelled(paths[number].parent.name)] * len(parts)
        else:
            unreadable.append(text)
    table = pa.table({"text": pa.array(texts, pa.large_string()), "folder": folders})
    words = f"{len(texts):,} {'lines or paragraphs' if cut == 'auto' else cut + 's'} of {len(paths):,} text file(s)"
    return Rows(table, "text", encode, words, hash_of(files.fingerprint(), cut), unreadable, len(paths))


def named(source: Any) -> Any:
    """A column of a data frame (pandas, polars) as a frame; anything else as it is."""
    return source.to_frame("text") if hasattr(source, "to_frame") else source


def _in_memory(source: Any) -> tuple[pa.Table, str]:
    """A table of what is no path, and the words for it."""
    if (table := frame(named(source))) is not None:
        return table, "a table" if table is source else f"a {type(source).__name__}"
    if isinstance(source, dict):
        raise LabelfreeError(f"A dictionary with {', '.join(map(str, source))} is no source of text.", "Give one part.")
    texts = [None if text is None or text != text else text for text in source]
    odd = next((text for text in texts if not (text is None or isinstance(text, str))), None)
    if odd is not None:
        raise LabelfreeError(f"A list of texts was expected, but it holds {type(odd).__name__}.", "Give strings.")
    return pa.table({"text": pa.array(texts, pa.large_string())}), "a list"


def _stamp(text: pa.ChunkedArray) -> str:
    """A hash of texts in memory: all lengths, and ten thousand of the texts."""
    rows = spaced(len(text), 10_000)
    text = text.cast(pa.large_string())  # of categories, too
    lengths = pc.fill_null(pc.binary_length(text), 0).to_numpy().astype(np.int64)
    some = text.take(pa.array(rows)).to_pylist() if len(text) else []
    return hash_of(lengths, "\0".join(value or "" for value in some))
