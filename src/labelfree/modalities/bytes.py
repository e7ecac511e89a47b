"""Bytes: any files as they are (executables, logs, packets), read by the machinery of text with bytes for word pieces.

A byte travels as the character of its number (Latin-1), so that whatever handles texts handles bytes.
"""

from __future__ import annotations

import copy
import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveInt
from torch import Tensor

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.encoded import encoded_columns
from labelfree.data.sources import ARRAYS, TABLES, frame, hash_of, list_files, read_table
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, reason_of
from labelfree.files import existing
from labelfree.modalities.base import Budget, Choice
from labelfree.modalities.capacity import transformer_for
from labelfree.modalities.text import Text
from labelfree.modalities.text.sources import Documents, Encode, Files, Rows, text_column
from labelfree.modalities.text.tokens import Blocks, count_ids
from labelfree.needs import Need
from labelfree.settings import Settings

#: Bytes of a file that are read at a time in pretraining, and of a whole file at most in evaluation and use.
PIECE, LONGEST = 1 << 16, 1 << 20
#: Share of printable characters above which bytes are looked at as text.
PRINTABLE = 0.9
_TEXT = frozenset(chr(byte) for byte in (9, 10, 13, *range(32, 127), *range(160, 256)))


class BytesSettings(Settings):
    """Settings of bytes."""

    column: str | None = None
    """column of a table that holds the bytes, or texts; by default one of bytes, or else the longest texts"""
    length: int = Field(256, ge=8)
    """bytes that attend to one another; pretraining cuts files into blocks of so many"""
    max_length: int = Field(1024, ge=8)
    """bytes of a file that are read in evaluation and use; the rest is left out"""
    span: PositiveInt = 6
    """bytes that are hidden together"""
    augment: Literal["crop", "delete", "dropout"] = "crop"
    """two views of a file: random spans with a tenth of the bytes left out, only the latter, or only dropout"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """dropout of the transformer"""


class ByteVocabulary:
    """Bytes ↔ ids: a byte's id is its number; special tokens follow. What `Vocabulary` is to text."""

    pad, unk, cls, sep, mask = range(256, 261)
    size = 261

    def encode(self, texts: Sequence[str], limit: int = 0) -> list[np.ndarray]:
        """Characters of bytes → int32 ids, each text ending in the separator; at most `limit` of them (0 for all)."""
        end = np.array([self.sep], dtype=np.int32)
        cut = [text[: limit - 1] if limit else text for text in texts]
        return [np.append(np.frombuffer(part.encode("latin-1"), dtype=np.uint8).astype(np.int32), end) for part in cut]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Characters of bytes, a middle dot in the place of hidden ones."""
        numbers = np.asarray(ids)
        numbers = np.where(numbers == self.mask, ord("·"), numbers)
        return numbers[numbers < 256].astype(np.uint8).tobytes().decode("latin-1")

    @property
    def special(self) -> list[int]:
        """Ids that are no bytes."""
        return list(range(256, self.size))

    def bytes_of(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of the ids are bytes."""
        return int((np.asarray(ids) < 256).sum())

    def state(self) -> str:
        return "bytes"


class ByteFiles(Files):
    """Files, or pieces of them, as the characters of their bytes."""

    #: Bytes of a file at most that `texts` reads.
    most: int = LONGEST
    #: Those that are encoded; set by the modality.
    encoded: int = LONGEST

    def __init__(self, paths: Sequence[Path], root: Path, encode: Encode) -> None:
        super().__init__(paths, root, encode)
        self.words = f"{len(paths):,} files as bytes"
        self._start = np.zeros(len(self.paths), dtype=np.int64)
        self._length = np.array([path.stat().st_size for path in self.paths], dtype=np.int64)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """No more of a file is read than is encoded."""
        short = copy.copy(self)
        short.most = self.encoded
        return super(ByteFiles, short).read(indices)

    def texts(self, indices: Sequence[int]) -> list[str | Unreadable]:
        found: list[str | Unreadable] = []
        for index in indices:
            try:
                with self.paths[index].open("rb") as file:
                    file.seek(int(self._start[index]))
                    found.append(file.read(min(int(self._length[index]), self.most)).decode("latin-1"))
            except OSError as error:
                found.append(Unreadable(int(index), self.name(index), reason_of(error)))
        return found

    def characters(self) -> np.ndarray:
        return self._length

    def chosen(self, rows: np.ndarray) -> Documents:
        other = copy.copy(self)
        other.paths = [self.paths[row] for row in rows]
        other._start, other._length = self._start[rows], self._length[rows]
        return other

    def pieces(self) -> Documents:
        """Long files in pieces, so that no file need be in memory as a whole."""
        counts = np.maximum(1, -(-self._length // PIECE))
        rows = np.repeat(np.arange(len(self)), counts)
        other = copy.copy(self)
        other.paths = [self.paths[row] for row in rows]
        other._start = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * PIECE
        other._length = np.minimum(self._length[rows] - other._start, PIECE)
        return other

    def known_unreadable(self) -> list[Unreadable]:
        return []


class Bytes(Text):
    """Bytes of any file. A token is a byte; the first of every view is the class token."""

    name = "bytes"
    suffixes = ()  # any file may be read as bytes
    settings_class = BytesSettings

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        """Whatever is in files, if nothing else recognises it; a list of bytes for certain."""
        if isinstance(source, list | tuple) and source and all(isinstance(item, bytes) for item in source[:100]):
            return 1.0, f"a list of {len(source):,} byte strings"
        if isinstance(source, Documents) or not isinstance(source, str | Path):
            return 0.0, ""
        path = Path(source).expanduser()
        kinds = Counter(p.suffix.lower() for p in _files(path))
        if not kinds or any(suffix in (*TABLES, *ARRAYS) for suffix in kinds):
            return 0.0, ""
        return 0.01, f"nothing else fits {kinds.total():,} file(s): they are read as bytes"

    def open(self, source: Any) -> Documents:
        documents = source.with_encode(self._encode) if isinstance(source, Documents) else self._open(source)
        if isinstance(documents, ByteFiles):
            documents.encoded = self.settings.max_length
        return documents

    def _open(self, source: Any) -> Documents:
        documents = self._documents(source)
        documents.modality, documents.unit = self.name, "bytes"
        if not len(documents) or not documents.characters().any():
            what = f"'{source}'" if isinstance(source, str | Path) else "The source"
            raise LabelfreeError(f"{what} holds no bytes: {len(documents)} files, all empty.", "Name another source.")
        return documents

    def _documents(self, source: Any) -> Documents:
        if isinstance(source, str | Path):
            path = existing(source)
            if path.is_dir():
                return ByteFiles(_files(path), path, self._encode)
            if path.suffix.lower() not in TABLES:
                return ByteFiles([path], path.parent, self._encode)
            return self._rows(read_table(path), f"'{path.name}'")
        if isinstance(source, list | tuple):
            odd = next((item for item in source if not isinstance(item, bytes | str)), None)
            if odd is not None:
                raise LabelfreeError(f"A list of bytes was expected, but it holds {type(odd).__name__}.")
            contents = [item if isinstance(item, bytes) else item.encode() for item in source]
            return self._rows(pa.table({"bytes": pa.array(contents, pa.large_binary())}), "a list")
        if (table := frame(source)) is not None:
            return self._rows(table, "a table")
        raise LabelfreeError(f"A {type(source).__name__} is no source of bytes.", "Give a path or a list of bytes.")

    def _rows(self, table: pa.Table, what: str) -> Documents:
        """A column of bytes, or of texts (as UTF-8), as characters of bytes."""
        binary = [
            name for name in encoded_columns(table.schema) if not pa.types.is_struct(table.schema.field(name).type)
        ]
        wanted = self.settings.column
        name = wanted if wanted in binary else text_column(table, wanted, what) if wanted or not binary else binary[0]
        values = table.column(name)
        if name not in binary:
            values = values.cast(pa.large_string()).cast(pa.large_binary())
        contents = [None if value is None else value.decode("latin-1") for value in values.to_pylist()]
        others = table.drop_columns([name, *(other for other in binary if other != name)])
        shown = others.append_column(name, pa.array(contents, pa.large_string()))
        stamp = hash_of(name, len(table), int(pc.sum(pc.binary_length(values)).as_py() or 0), *contents[:100])
        return Rows(shown, name, self._encode, f"{len(table):,} rows of {what} as bytes", stamp)

    def training_set(self, dataset: Dataset, needs: frozenset[Need] = frozenset()) -> Dataset:
        """Files for objectives on views of them; else all bytes packed into blocks of `length` tokens."""
        if isinstance(dataset, ByteFiles) and Need.VIEWS not in needs:
            return Blocks(dataset.pieces(), self.vocabulary, self.settings.length - 1)  # type: ignore[arg-type]
        return super().training_set(dataset, needs)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        return [
            Choice("method", "masked", "hidden spans of bytes are learnt from any file"),
            transformer_for(found.numbers["characters"], budget),
            Choice("batch_size", 64, "many small steps"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        """How often each byte comes; there must be something to learn from."""
        if isinstance(dataset, Documents):
            self._check_enough(list(_heads(dataset)))
            pieces = dataset.pieces() if isinstance(dataset, ByteFiles) else dataset
            self._counts = count_ids(self.vocabulary, list(_heads(pieces)))

    def state(self) -> dict[str, Any]:
        return self._frequencies()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._load_frequencies(state)

    @property
    def vocabulary(self) -> ByteVocabulary:  # type: ignore[override]
        """Bytes ↔ ids."""
        return ByteVocabulary()

    # ---- tokens

    def _mask_scores(self, batch: Batch, draw: Draw) -> Tensor:
        """The same for all bytes of a span, whose grid begins at random in each sample."""
        count, span = batch.data.shape[1], self.settings.span
        scores = draw.uniform("mask", -(-count // span) + 1).repeat_interleave(span, dim=1)
        start = draw.integers("start", span)
        place = start[:, None] + start.new_ones(len(start), count).cumsum(dim=1) - 1
        return scores.gather(1, place)

    # ---- for people, and for baselines

    def ids_of(self, words: str) -> list[int]:
        return [*words.encode()]

    def words_of(self, ids: Sequence[int]) -> str:
        return as_text(self.vocabulary.decode(ids))

    def show(self, sample: Any) -> str:
        text = self.vocabulary.decode(sample.data[:256])
        if readable(text):
            return f'<span class="text">{html.escape(as_text(text))}</span>'
        lines = [text[i : i + 16] for i in range(0, min(len(text), 64), 16)]
        dump = "\n".join(" ".join(f"{ord(c):02x}" for c in line) for line in lines)
        return f"<pre>{dump}</pre>"

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """TF-IDF of words where the bytes are text, else of bytes and pairs of bytes."""
        source, _ = train.origin()
        assert isinstance(source, Documents)
        if all(readable(head) for head in _heads(source)):
            return super().raw_features(train, others)
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(
            analyzer="char",
            ngram_range=(1, 2),
            lowercase=False,
            sublinear_tf=True,
            max_features=1 << 16,
            dtype=np.float32,
        )
        texts = [self._whole(dataset) for dataset in (train, *others)]
        return [tfidf.fit_transform(texts[0]), *(tfidf.transform(other) for other in texts[1:])]

    def _whole(self, dataset: Dataset) -> Iterator[str]:
        """Characters of each sample's bytes, one after another; "" where unreadable."""
        source, rows = dataset.origin()
        assert isinstance(source, Documents)
        for row in rows.tolist():
            text = source.texts([row])[0]
            yield text if isinstance(text, str) else ""


def _files(path: Path) -> list[Path]:
    """Every file at or below a path, but hidden ones."""
    if path.is_dir():
        return list_files(path)
    return [path] if path.is_file() else []


def _heads(documents: Documents) -> Iterator[str]:
    """The first bytes of a few documents all over the source."""
    for row in spaced(len(documents), 32).tolist():
        text = documents.texts([row])[0]
        if isinstance(text, str):
            yield text[:4096]


def readable(text: str) -> bool:
    """Whether characters of bytes are a text."""
    return sum(char in _TEXT for char in text) >= PRINTABLE * len(text)


def as_text(text: str) -> str:
    """Characters of bytes as the UTF-8 that they may be."""
    return text.encode("latin-1").decode("utf-8", errors="replace")
