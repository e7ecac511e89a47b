"""Text: documents as word pieces."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from labelfree.data import written
from labelfree.data.batch import Batch, Sample
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw, hash_int
from labelfree.data.named import ENDINGS
from labelfree.data.on_device import on_device
from labelfree.data.sources import TABLES, frame, listed_files, names_files, read_head, share_of
from labelfree.distributed import of_others
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget, Choice, Modality, Transformation, token_mask
from labelfree.modalities.capacity import transformer_for
from labelfree.modalities.text import views
from labelfree.modalities.text.sources import (
    LISTED,
    SUFFIXES,
    Cut,
    Documents,
    mean_length,
    named,
    open_documents,
    text_column,
)
from labelfree.modalities.text.successors import learn_successors
from labelfree.modalities.text.tokens import (
    COUNT_IN,
    LEARN_FROM,
    Blocks,
    TextStem,
    Vocabulary,
    some_texts,
    valid_tokens,
)
from labelfree.modalities.text.vectors import word_vectors
from labelfree.needs import Need
from labelfree.settings import Settings

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder


#: Texts that are enough to spread; `benchmarks/README.md` has trials with 200 of them and with thousands.
MANY_TEXTS = 128
#: Characters of a token, roughly.
CHARACTERS = 4


class TextSettings(Settings):
    """Settings of text."""

    column: str | None = None
    """column of a table that holds the text; by default the one with the longest texts"""
    document: Cut = "auto"
    """what a document is in text files: file, paragraph or line; auto: each file of a folder, paragraphs of one file"""
    vocabulary: PositiveInt = 8192
    """largest number of tokens to learn, if no tokenizer is given; a small source has fewer"""
    lowercase: bool = True
    """learn a vocabulary without capitals"""
    tokenizer: str | None = None
    """a tokenizer.json, or a folder with one, to use instead of learning a vocabulary"""
    length: int = Field(128, ge=8)
    """tokens that attend to one another; pretraining cuts text into blocks of so many"""
    max_length: int = Field(512, ge=8)
    """tokens of a document that are read in evaluation and use; the rest is left out"""
    augment: Literal["crop", "delete", "dropout"] = "crop"
    """two views of a document: random spans with a tenth of the tokens left out, only the latter, or only dropout"""
    dropout: float = Field(0.1, ge=0, lt=1)
    """dropout of the transformer"""
    word_vectors: Literal["counted", "random"] = "counted"
    """where a new transformer's vectors of words start: at which words stand near which in the source, or at random"""


class Text(Modality):
    """Text. A token is a word piece; the first of every view is the class token."""

    name = "text"
    settings_class: ClassVar[type[Settings]] = TextSettings
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    offers = frozenset(
        {Need.VIEWS, Need.ALIGNED_VIEWS, Need.TARGETS, Need.MASK, Need.ORDER, Need.TRANSFORMATIONS, Need.IDS}
    )

    def __init__(self, settings: TextSettings | None = None) -> None:
        super().__init__(settings)
        self._vocabulary: Vocabulary | None = None
        self._counts: np.ndarray | None = None
        self._read: np.ndarray | None = None
        self._read_from: Dataset | None = None
        self._ordinary: Tensor | None = None

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if isinstance(source, Documents):
            return 1.0, source.words
        if isinstance(source, str | Path):
            return _recognise_path(Path(source).expanduser())
        if (table := frame(named(source), 1000)) is not None:
            return _recognise_table(table)
        if isinstance(source, list | tuple | np.ndarray):
            if listed_files(source, LISTED) is not None:
                return 1.0, f"a list that names {len(source):,} text files"
            some = list(islice(source, 100))
            if some and all(isinstance(item, str) for item in some):
                return (0.0, "") if names_files(some, ENDINGS) else (1.0, f"{len(source):,} strings")
        return 0.0, ""

    def open(self, source: Any) -> Documents:
        return open_documents(source, self.settings.column, self.settings.document, self._encode)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return self.vocabulary.encode(texts, self.settings.max_length - 1)

    def training_set(self, dataset: Dataset, needs: frozenset[Need] = frozenset()) -> Dataset:
        """Documents for objectives on views of them; else all text packed into blocks of `length` tokens."""
        if not isinstance(dataset, Documents):
            return dataset
        if Need.VIEWS in needs:
            full = dataset.characters() > 0
            return dataset if full.all() else dataset.chosen(np.flatnonzero(full))
        known = self._read if dataset is self._read_from else None
        return Blocks(dataset, self.vocabulary, self.settings.length - 1, known)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        method = Choice("method", "masked", "few texts: every word of theirs can be asked for")
        if found.count >= MANY_TEXTS:
            spread = "stretches of a text agree, and texts spread in all directions: learns from short trainings on"
            method = Choice("method", "emp", spread)
        return [
            method,
            transformer_for(found.numbers["characters"] / CHARACTERS, budget),
            Choice("batch_size", 64, "many small steps"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        some = list(some_texts(dataset, COUNT_IN)) if isinstance(dataset, Documents) else []
        if self.settings.tokenizer is not None:
            self._vocabulary = Vocabulary.read(self.settings.tokenizer)
        elif isinstance(dataset, Documents):
            less = some_texts(dataset, LEARN_FROM)
            self._vocabulary = Vocabulary.learn(less, self.settings.vocabulary, self.settings.lowercase)
        else:
            raise LabelfreeError("A vocabulary is learnt from documents.", "Open the source with the text modality.")
        self._read = np.concatenate(self._vocabulary.encode(some)) if some else None
        self._read_from = dataset if len(some) == len(dataset) else None
        self._counts = None if self._read is None else np.bincount(self._read, minlength=self._vocabulary.size)
        self._check_enough(some)  # last, so that texts that teach nothing can still be read

    def _check_enough(self, texts: list[str]) -> None:
        """Raises LabelfreeError where there is nothing to learn from: one short text, or one that is repeated."""
        if len(texts) > 1 and len(set(texts)) == 1:
            raise LabelfreeError(
                f"All texts are the same ({texts[0][:40]!r}): there is nothing to learn.", "Give different texts."
            )
        if len(texts) == 1 and len(texts[0]) < self.settings.length:
            raise LabelfreeError(
                f"Learning needs more than one text of {len(texts[0])} characters.", "Give more texts, or a longer one."
            )

    def state(self) -> dict[str, Any]:
        return {"tokenizer": self.vocabulary.state(), **self._frequencies()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._vocabulary = Vocabulary.from_state(state["tokenizer"])
        self._read = self._read_from = None  # ids of another vocabulary, if any
        self._load_frequencies(state)

    def _frequencies(self) -> dict[str, Any]:
        return {} if self._counts is None else {"counts": " ".join(map(str, self._counts.tolist()))}

    def _load_frequencies(self, state: Mapping[str, Any]) -> None:
        self._counts = np.array(state["counts"].split(), dtype=np.int64) if "counts" in state else None

    @property
    def vocabulary(self) -> Vocabulary:
        """Text ↔ ids."""
        if self._vocabulary is None:
            raise LabelfreeError("The text modality has no vocabulary yet.", "Call fit on the training source first.")
        return self._vocabulary

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        lengths = np.array([len(sample.data) for sample in samples])
        data = np.full((len(samples), lengths.max()), self.vocabulary.pad, dtype=np.int64)
        for row, sample in enumerate(samples):
            data[row, : len(sample.data)] = sample.data
        return Batch(
            torch.from_numpy(data),
            torch.tensor([sample.index for sample in samples]),
            None if (lengths == lengths[0]).all() else torch.from_numpy(lengths),
            group=torch.tensor([sample.group for sample in samples]),
        )

    def prepare(self, batch: Batch) -> Batch:
        return self._begin(batch)

    def _begin(self, batch: Batch) -> Batch:
        lengths = None if batch.lengths is None else batch.lengths + 1
        return batch.with_(data=views.begin(batch.data, self.vocabulary.cls), lengths=lengths)

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        augment, pad = self.settings.augment, self.vocabulary.pad
        if policy == "local":
            batch = views.random_span(batch, draw, self.settings.length // 2, pad)
        elif policy == "contrast" and augment == "crop":
            batch = views.random_span(batch, draw, self.settings.length - 1, pad)
        if policy == "contrast" and augment in ("crop", "delete"):
            batch = views.delete(batch, draw, 0.1, pad)
        return self._begin(batch).with_(draw=draw)

    def overlapping_views(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch, Tensor]:
        one, two, offset, shared = views.overlapping(batch, draw, self.vocabulary.pad)
        tokens = 1 + torch.arange(shared, device=batch.data.device).expand(len(batch), -1)
        first, second = (self._begin(crop).with_(draw=draw.view(i)) for i, crop in enumerate((one, two)))
        return first, second, torch.stack([tokens + offset, tokens])

    def transformations(self) -> Mapping[str, Transformation]:
        """Does the second half follow the first (Devlin et al. 2019, §3.1)? Are the halves in their order (Lan et al.
        2020, ALBERT, §3.1)?
        """
        return {
            "next-sentence": Transformation(2, self._next_sentence),
            "order": Transformation(2, self._order),
        }

    def _next_sentence(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        batch = views.widened(batch, self.vocabulary.pad)
        a, b, first, second = self._halves(batch)
        other, length = of_others((b, second), hash_int(draw.batch, 4))
        swap = which.bool()
        return self._pair(
            batch, (a, torch.where(swap[:, None], other, b)), (first, torch.where(swap, length, second)), draw
        )

    def _order(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        a, b, first, second = self._halves(batch)
        width = max(a.shape[1], b.shape[1])
        pad = self.vocabulary.pad
        a, b = (F.pad(part, (0, width - part.shape[1]), value=pad) for part in (a, b))
        swap = which.bool()
        parts = torch.where(swap[:, None], b, a), torch.where(swap[:, None], a, b)
        return self._pair(batch, parts, (torch.where(swap, second, first), torch.where(swap, first, second)), draw)

    def _halves(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = views.halves(batch)
        width, pad = batch.data.shape[1], self.vocabulary.pad
        a = views.spans(batch.data, torch.zeros_like(first), first, (width + 1) // 2, pad)
        b = views.spans(batch.data, first, second, max(1, width // 2), pad)
        return a, b, first, second

    def _pair(self, batch: Batch, parts: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor], draw: Draw) -> Batch:
        data, total = views.join(parts, lengths, self.vocabulary.sep, self.vocabulary.pad)
        known = batch.lengths is not None
        return self._begin(batch.with_(data=data, lengths=total if known else None)).with_(draw=draw)

    # ---- tokens

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.encoders.trunk import Trunk

        shape, own = SIZES[size], self.settings
        stem = TextStem(self.vocabulary.size, shape.dim)
        return Trunk(stem, shape.dim, shape.depth, shape.heads, causal, own.dropout, window=own.length)

    def warm(self, encoder: Encoder) -> Choice | None:
        from labelfree.encoders.trunk import Trunk

        own, read = self.vocabulary, self._read
        if not isinstance(encoder, Trunk) or read is None or self.settings.word_vectors == "random":
            return None
        stem: Any = encoder.stem
        stem.start_from(*word_vectors(read, own.size, encoder.dim, own.special, own.sep))
        encoder.pass_tokens_on()
        return Choice("word_vectors", "counted", f"which words stand near which, in {len(read):,} of them")

    def warm_next(self, encoder: Encoder, head: nn.Module) -> Choice | None:
        from labelfree.encoders.trunk import Trunk

        own, read = self.vocabulary, self._read
        if not isinstance(encoder, Trunk) or read is None or self.settings.word_vectors == "random":
            return None
        learn_successors(read, own.size, own.cls, encoder, head)
        return Choice("word_vectors", "counted", f"which words stand near and after which, in {len(read):,} of them")

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Words are hidden, special tokens only where there are too few words, padding never."""
        ids, words = batch.data, self.vocabulary
        score = self._mask_scores(batch, draw)
        score = score + ((ids == words.cls) | (ids == words.sep)).float()
        return token_mask(score, ratio, valid_tokens(batch))

    def _mask_scores(self, batch: Batch, draw: Draw) -> Tensor:
        """(B, N) uniform numbers: the tokens with the lowest are hidden."""
        return draw.uniform("mask", batch.data.shape[1])

    def hide(self, batch: Batch, mask: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        """Of the hidden tokens 80 % look hidden, 10 % are other words, 10 % are left (Devlin et al. 2019, §3.1)."""
        fate = draw.uniform("fate", mask.shape[1])
        unseen, other = mask & (fate < 0.8), mask & (fate >= 0.9)
        data = torch.where(other, self._random_words(batch.data, draw), batch.data)
        return batch.with_(data=data.masked_fill(unseen, self.vocabulary.mask)), unseen

    def _random_words(self, like: Tensor, draw: Draw) -> Tensor:
        if self._ordinary is None:
            words = self.vocabulary
            self._ordinary = torch.tensor(sorted({*range(words.size)} - {*words.special}))
        ordinary = on_device(self._ordinary, like.device)
        return ordinary[draw.integers("word", len(ordinary), like.shape[1])]

    def targets(self, batch: Batch) -> Tensor:
        return batch.data

    @property
    def target_dim(self) -> int:
        return self.vocabulary.size

    def target_bias(self) -> Tensor | None:
        """Log frequencies of the ids in the training texts, each seen once more than it was."""
        if self._counts is None:
            return None
        return torch.from_numpy(np.log((self._counts + 1) / (self._counts.sum() + len(self._counts)))).float()

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(prediction.flatten(0, -2), target.flatten(), reduction="none")
        return losses.view(target.shape)

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        ids = view.data
        if prediction is not None:
            found = prediction.argmax(dim=-1).masked_fill(prediction.isnan().any(dim=-1), self.vocabulary.mask)
            ids = found if mask is None else torch.where(mask, found, ids)
        lengths = [ids.shape[1]] * len(ids) if view.lengths is None else view.lengths.tolist()
        rows = zip(ids.cpu().numpy(), lengths, view.index.tolist(), strict=True)
        return [Sample(row[1:length].astype(np.int32), index) for row, length, index in rows]

    # ---- for people, and for baselines

    def ids_of(self, words: str) -> list[int]:
        return [int(i) for i in self.vocabulary.encode([words])[0][:-1]]

    def words_of(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def show(self, sample: Sample) -> str:
        text = self.vocabulary.decode(sample.data[:120])
        short = text if len(text) <= 280 else text[:280].rsplit(" ", 1)[0] + " …"
        return f'<span class="text">{html.escape(short) or "(empty)"}</span>'

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """TF-IDF of words and pairs of words, of whole documents."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [_texts(dataset) for dataset in (train, *others)]
        rare = 2 if len(texts[0]) >= 1000 else 1
        tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=rare, dtype=np.float32)
        try:
            return [tfidf.fit_transform(texts[0]), *(tfidf.transform(other) for other in texts[1:])]
        except ValueError:  # no words at all: letters and signs instead
            tfidf = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, dtype=np.float32)
            return [tfidf.fit_transform(texts[0]), *(tfidf.transform(other) for other in texts[1:])]


def _texts(dataset: Dataset) -> list[str]:
    """Whole texts of a dataset, "" where unreadable, wherever it was taken from."""
    documents, rows = dataset.origin()
    assert isinstance(documents, Documents)
    found = documents.texts(rows.tolist())
    return [text if isinstance(text, str) else "" for text in found]


def _recognise_path(path: Path) -> tuple[float, str]:
    try:
        if path.is_dir():
            (files, share), (tables, share_of_tables) = share_of(path, SUFFIXES), share_of(path, TABLES)
            if share > 0.5:
                return 0.9, f"{len(files):,} text files"
            return _recognise_path(tables[0]) if share_of_tables > 0.5 else (0.0, "")
        if path.suffix.lower() in TABLES:
            return _recognise_table(read_head(path))
        if path.suffix.lower() in SUFFIXES and path.is_file():
            return 0.9, "a text file"
    except LabelfreeError:
        return 0.0, ""
    return 0.0, ""


def _recognise_table(table: pa.Table) -> tuple[float, str]:
    """Sure where a column holds sentences; a column of short names may be a label beside numbers or pictures."""
    try:
        name = text_column(table, None, "the table")
    except LabelfreeError:
        return 0.0, ""
    typical = mean_length(table, name)
    words = table.column(name).cast(pa.string())
    if written.dates(words) is not None or written.numbers(words) is not None:
        return 0.0, ""
    sure = 0.9 if typical >= 40 else 0.6 if typical >= 15 else 0.1
    return sure, f"column '{name}' of texts of {typical:,.0f} characters"
