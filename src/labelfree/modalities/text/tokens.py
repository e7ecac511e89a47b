"""Text as numbers: the vocabulary, documents packed into blocks, and the stem that embeds ids."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.mapped import InFile, Shared
from labelfree.data.sources import hash_of
from labelfree.data.spread import spaced
from labelfree.encoders.trunk import EMBEDDED
from labelfree.errors import LabelfreeError
from labelfree.modalities.text.sources import Documents

#: What each special token is called in the vocabularies of the common models; ours is the first.
SPECIAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<|endoftext|>"),
    "sep": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
#: Characters from which a vocabulary is learnt, those in which its words are counted, and documents read at a time.
LEARN_FROM, COUNT_IN, CHUNK = 8_000_000, 20_000_000, 1024
#: How a hidden token looks to people.
HIDDEN = "▢"
#: Characters above which packed tokens go to a temporary file instead of memory.
IN_MEMORY = 2_000_000_000


def library() -> Any:
    """The `tokenizers` package. Raises LabelfreeError where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise LabelfreeError(
            "Text needs the package 'tokenizers', which is not installed.", "Install it: pip install tokenizers."
        ) from None
    return tokenizers


class Vocabulary:
    """Text ↔ ids, by a Hugging Face tokenizer.

    Attributes:
        size: how many ids there are.
        pad, unk, cls, sep, mask: ids of the special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        known = tokenizer.get_vocab(with_added_tokens=True)
        names = {key: next((name for name in names if name in known), names[0]) for key, names in SPECIAL.items()}
        tokenizer.add_special_tokens([name for name in names.values() if name not in known])
        self._tokenizer = tokenizer
        self.pad, self.unk, self.cls, self.sep, self.mask = (tokenizer.token_to_id(name) for name in names.values())
        self.size = int(tokenizer.get_vocab_size(with_added_tokens=True))

    @classmethod
    def learn(cls, texts: Iterable[str], size: int, lowercase: bool) -> Vocabulary:
        """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, §2.2) of at most `size` tokens.

        Bytes leave no character unknown, in any language, and the library learns BPE the same way every time, which it
        does not do for WordPiece. Runs of blanks count as one; the breaks of lines are kept.
        """
        lib = library()
        tidy = [lib.normalizers.NFKC(), lib.normalizers.Lowercase()] if lowercase else [lib.normalizers.NFKC()]
        tidy += [
            lib.normalizers.Replace(lib.Regex(r"\s*\n\s*"), "\n "),
            lib.normalizers.Replace(lib.Regex(r"[^\S\n]+"), " "),
            lib.normalizers.Strip(),
        ]
        tokenizer = lib.Tokenizer(lib.models.BPE())
        tokenizer.normalizer = lib.normalizers.Sequence(tidy)
        tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = lib.decoders.ByteLevel()
        trainer = lib.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[names[0] for names in SPECIAL.values()],
            initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """The vocabulary of a `tokenizer.json`, or of a folder that holds one.

        Raises:
            LabelfreeError: missing or damaged.
        """
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.exists():
            raise LabelfreeError(f"There is no tokenizer at '{file}'.", "Give a tokenizer.json, or a folder with one.")
        try:
            return cls(library().Tokenizer.from_file(str(file)))
        except LabelfreeError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise LabelfreeError(f"'{file}' is not a tokenizer: {error}.", "Save it with tokenizers' save().") from None

    @classmethod
    def from_state(cls, state: str) -> Vocabulary:
        return cls(library().Tokenizer.from_str(state))

    def state(self) -> str:
        return str(self._tokenizer.to_str())

    def encode(self, texts: Sequence[str], limit: int = 0) -> list[np.ndarray]:
        """Texts → int32 ids, each ending in the separator; at most `limit` of them (0 for all)."""
        if limit:  # a token is rarely longer than 16 characters: the rest need not be looked at
            texts = [text[: 16 * limit] for text in texts]
        end = np.array([self.sep], dtype=np.int32)
        ids = [item.ids for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [np.concatenate([np.array(i[: limit - 1] if limit else i, dtype=np.int32), end]) for i in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text without special tokens, but for a sign in the place of hidden ones."""
        ids = np.asarray(ids, dtype=np.int64)
        cuts = np.flatnonzero(ids == self.mask)
        parts = [part[part != self.mask].tolist() for part in np.split(ids, cuts)]
        return f" {HIDDEN}".join(self._tokenizer.decode(part, skip_special_tokens=True) for part in parts).strip()

    @property
    def special(self) -> list[int]:
        """Ids that are no part of a text."""
        return sorted({self.pad, self.unk, self.cls, self.sep, self.mask})

    def bytes_of(self, ids: Sequence[int] | np.ndarray) -> int:
        """Bytes of the text that ids stand for."""
        return len(self.decode(ids).encode())


def some_texts(documents: Documents, characters: int) -> Iterator[str]:
    """Texts spread evenly over the source, about so many characters of them, but none that are blank."""
    share = min(1.0, characters / max(1, int(documents.characters().sum())))
    rows = spaced(len(documents), max(1, round(share * len(documents))))
    left = 2 * characters
    for start in range(0, len(rows), CHUNK):
        for text in documents.texts(rows[start : start + CHUNK].tolist()):
            if isinstance(text, str) and text.strip() and left > 0:
                yield text[:left]
                left -= len(text)


def count_ids(vocabulary: Any, texts: Iterable[str]) -> np.ndarray:
    """(V,) int64: how often each id of a vocabulary stands in texts; the separator after each text is counted too."""
    ids = vocabulary.encode(list(texts))
    return np.bincount(np.concatenate(ids), minlength=vocabulary.size) if ids else np.zeros(vocabulary.size, np.int64)


class Blocks(Shared, Dataset):
    """All documents end to end, each closed by a separator, cut into samples of `length` ids; no token is left out.

    The last block ends where the text ends, so it may repeat a part of the one before.

    Arguments:
        length: ids of a block.
        known: the ids of all documents end to end, where they were made already.
    """

    def __init__(
        self, documents: Documents, vocabulary: Vocabulary, length: int, known: np.ndarray | None = None
    ) -> None:
        self.documents = documents
        self.unreadable: list[Unreadable] = [*documents.unreadable]
        #: Number of the open file that the ids are in, if they are in one.
        self._file: int | None = None
        self._ids = self._pack(vocabulary) if known is None else known
        # Text shorter than two blocks is cut in halves: one sample teaches nothing.
        self.length = max(1, min(length, len(self._ids) // 2))

    def _pack(self, vocabulary: Vocabulary) -> np.ndarray:
        kind = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.int32)
        if self.documents.characters().sum() <= IN_MEMORY:
            parts = [ids.astype(kind) for ids in self._encoded(vocabulary)]
            if not parts:
                example = self.unreadable[0]
                raise LabelfreeError(
                    f"None of the {len(self.documents)} documents can be read; '{example.name}': {example.reason}.",
                    "Check the source.",
                )
            return np.concatenate(parts)
        with tempfile.TemporaryFile() as file:
            for ids in self._encoded(vocabulary):
                ids.astype(kind).tofile(file)
            file.flush()
            self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
            return np.memmap(file, dtype=kind, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state if self._file is None else {**state, "_ids": InFile.of(self._ids, self._file), "_file": None}

    def _encoded(self, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
        for start in range(0, len(self.documents), CHUNK):
            items = self.documents.texts(range(start, min(start + CHUNK, len(self.documents))))
            self.unreadable += [item for item in items if isinstance(item, Unreadable)]
            texts = [item for item in items if isinstance(item, str) and item.strip()]
            if texts:
                yield np.concatenate(vocabulary.encode(texts))

    def __len__(self) -> int:
        return -(-len(self._ids) // self.length)

    def source_count(self) -> int:
        return self.documents.source_count()

    @property
    def ids(self) -> np.ndarray:
        """All ids, end to end."""
        return self._ids

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        last = len(self._ids) - self.length
        starts = [min(int(index) * self.length, last) for index in indices]
        return [
            Sample(np.asarray(self._ids[start : start + self.length], dtype=np.int32), int(index))
            for index, start in zip(indices, starts, strict=True)
        ]

    def describe(self) -> Description:
        found = self.documents.describe()
        facts = {**found.facts, "tokens": f"{len(self._ids):,}", "blocks": f"{len(self):,} of {self.length} tokens"}
        return Description("text", len(self), facts, {**found.numbers, "tokens": len(self._ids)})

    def fingerprint(self) -> str:
        return hash_of(self.documents.fingerprint(), len(self._ids), self.length)

    def name(self, index: int) -> str:
        return f"block {index}"


class TextStem(nn.Module):
    """ids (B, N) → embeddings (B, N, D)."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.trunc_normal_(self.embedding.weight, std=EMBEDDED)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.embedding(batch.data), valid_tokens(batch)

    @torch.no_grad()
    def start_from(self, vectors: np.ndarray, seen: np.ndarray) -> None:
        """Begin with the directions of `vectors` (V, D) where `seen` (V,), as long as random ones are."""
        rows = torch.from_numpy(vectors[seen])
        self.embedding.weight[torch.from_numpy(seen)] = EMBEDDED * rows / rows.std(dim=1, keepdim=True)


def valid_tokens(batch: Batch) -> Tensor | None:
    """(B, N) bool: which tokens are no padding; None where all are."""
    if batch.lengths is None:
        return None
    return torch.arange(batch.data.shape[1], device=batch.data.device) < batch.lengths[:, None]
