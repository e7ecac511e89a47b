"""The Modality contract: what a kind of data can do. One file a kind of data implements it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch, Sample
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError, Refusal
from labelfree.needs import Need
from labelfree.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from labelfree.data.events import Log, RecentEvents
    from labelfree.encoders.base import Encoder


#: Which tokens of two crops are the same: (2, B, L) int64 token numbers, or a slice of each where they are the same
#: for all samples (which costs nothing to take).
Shared = Tensor | tuple[slice, slice]


@dataclass(frozen=True)
class Transformation:
    """A set of transformations for pretext tasks: which one was applied is the question.

    Attributes:
        count: how many there are; the first, 0, leaves the sample as it is, if one does.
        apply: (batch, which (B,) int64, draw) → the transformed batch, ready for an encoder.
        ordered: whether only an encoder that sees the order of a sample's parts can tell.
    """

    count: int
    apply: Callable[[Batch, Tensor, Draw], Batch]
    ordered: bool = False


@dataclass(frozen=True)
class PictureForm:
    """What `Modality.pictures` gives: the shape of a picture, and the side of the squares that it divides into.

    `count` is how many a sample is: a network that looks at each of several alone does not see in what order they come.
    `stem` is the step of a convolution net's first convolution on small pictures; 0 for what suits their size. With
    `class_token` a vision transformer has a token for the whole picture, and reads the picture off it.
    """

    channels: int
    height: int
    width: int
    patch: int
    count: int = 1
    stem: int = 0
    class_token: bool = False


@dataclass(frozen=True, slots=True)
class Links:
    """Hidden links between tokens, and pairs that are not linked.

    Attributes:
        view: without the hidden links.
        pairs: (B, P, 2) int64 tokens that may be linked; `hidden` (B, P) bool says which pairs are links that are
            hidden.
        others: (B, P, 2) int64 other pairs, one for each; `apart` (B, P) bool says which of them are not linked. None
            where samples are pieces of one whole: what is far from all of a piece is the first token of another one.
    """

    view: Batch
    pairs: Tensor
    hidden: Tensor
    others: Tensor | None
    apart: Tensor


@dataclass(frozen=True)
class Choice:
    """A default chosen from the data, the machine and the time allowed, with the reason that is printed.

    One `of_encoder` goes with the default encoder, and holds only where the user named no other.
    """

    key: str
    value: Any
    reason: str
    of_encoder: bool = False

    def record(self) -> dict[str, Any]:
        """As a run keeps it."""
        return {"key": self.key, "value": self.value, "reason": self.reason}


@dataclass(frozen=True)
class Budget:
    """What a modality may reckon with when it chooses defaults.

    Attributes:
        seconds: time for training, or None where the user fixed epochs or steps.
        flops: rough floating-point operations a second that training reaches on this machine.
        views: whether the method learns from two views of a sample; None where it is still to be chosen.
        accelerator: whether there is a GPU.
        needs: what the method, where it was named, needs of the encoder that is chosen.
        case: whether samples of one case are to be each other's positives.
    """

    seconds: float | None
    flops: float
    accelerator: bool
    views: bool | None = None
    needs: frozenset[Need] = frozenset()
    case: bool = False


class Modality(ABC):
    """A kind of data. Stateless but for its settings and the statistics that `fit` learns from training data.

    A *raw* batch is what `collate` returns; a *view* is what an encoder takes. `prepare`, `view`, `overlapping_views`
    and `transformations` turn the first into the second; everything else takes views.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Settings]]
    #: What this kind of data offers to objectives.
    offers: ClassVar[frozenset[Need]]
    #: Whether training sees samples in random order; false where they must come as they happened.
    shuffled: ClassVar[bool] = True
    #: Classical models on `raw_features` that evaluation sets beside the encoder ("linear", "boosting").
    classical: ClassVar[tuple[str, ...]] = ("linear",)
    #: Endings of files that are a sample each.
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: Whether samples are values in time or space, of which those that are constant hold nothing.
    signal: ClassVar[bool] = False
    #: Whether samples that are nearly alike are copies of one another; false where different ones (two people of one
    #: age and trade) may well be.
    near_copies: ClassVar[bool] = True
    #: Whether the tokens of this kind of data are the square patches of its one picture, so that vision transformers
    #: can hide them and read them in order.
    patched: ClassVar[bool] = False
    #: The modality of each side, in the order of the encoder's output, where `Need.PAIR` is offered; and the encoder
    #: spec and folder of the run of each side that was taken from one.
    sides: Mapping[str, Modality] = MappingProxyType({})
    runs: Mapping[str, tuple[str, Path]] = MappingProxyType({})

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings: Any = settings if settings is not None else self.settings_class()

    # ---- reading

    @classmethod
    @abstractmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        """How sure (0–1) that `source` is this kind of data, and the words for it ("1,203 JPEG files")."""

    @classmethod
    def guess(cls, source: Any) -> tuple[float, str]:
        """What `recognise` says; not at all sure where it cannot look into the source."""
        try:
            return cls.recognise(source)
        except (LabelfreeError, pa.ArrowException, OSError, UnicodeError):
            return 0.0, ""

    @abstractmethod
    def open(self, source: Any) -> Dataset:
        """Open a source. Raises LabelfreeError where it is missing, empty or of another kind."""

    def training_set(self, dataset: Dataset, needs: frozenset[Need] = frozenset()) -> Dataset:
        """What pretraining draws samples from: packed token blocks, windows of long recordings; else the set itself.

        Args:
            dataset: what `open` returned.
            needs: the objective's; two views want whole documents, hidden tokens full blocks.
        """
        return dataset

    @abstractmethod
    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        """Defaults for keys `method`, `encoder`, `batch_size`, and this modality's own, each with its reason."""

    # ---- statistics, from training data only

    @abstractmethod
    def fit(self, dataset: Dataset) -> None:
        """Learn statistics (means, vocabulary) from the training source. Pure function of the data and settings."""

    def warm(self, encoder: Encoder) -> Choice | None:
        """Start weights of a new encoder from what `fit` counted, where counting says in seconds what training learns
        slowly. Returns what was done; None where nothing was.
        """
        return None

    def warm_next(self, encoder: Encoder, head: nn.Module) -> Choice | None:
        """The same, after `warm`, of an encoder and the `head` that predicts the next token from its features."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `fit` learnt, as JSON-ready values."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None: ...

    # ---- batches and views

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A raw batch. Equal-shaped where samples are; else padded, with `lengths`."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Batch:
        """The view without randomness (evaluation, features): normalised, resized."""

    @abstractmethod
    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        """A random view, which carries `draw`.

        Args:
            policy: "contrast" (as two-view objectives want), "light" (masked and pretext objectives: only what keeps
                the content), "none" (as `prepare`), or "local" (multi-crop: a small part of the sample, in a smaller
                tensor where encoders allow; the same as "contrast" for what has no parts).
        """

    def overlapping_views(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch, Shared]:
        """Two crops that overlap, and where in each the L shared tokens are."""
        raise Refusal(f"{self.name} data does not offer {Need.ALIGNED_VIEWS}.")

    def transformations(self) -> Mapping[str, Transformation]:
        """Named sets for pretext tasks; the first is the default."""
        return {}

    def corrupt(self, view: Batch, draw: Draw) -> Batch:
        """A view of samples that make no sense, though their parts are those of `view`."""
        raise Refusal(f"{self.name} data does not offer {Need.CORRUPTION}.")

    def links(self, view: Batch, draw: Draw, share: float) -> Links:
        """Hide a share of the links between tokens."""
        raise Refusal(f"{self.name} data does not offer {Need.LINKS}.")

    # ---- tokens: masks, targets

    @abstractmethod
    def transformer(self, size: str, causal: bool) -> Encoder:
        """The shared transformer of `size` (pico, nano, tiny, small, base) with this modality's stem; timm's ViT for
        pictures.
        """

    def picture_form(self) -> PictureForm:
        """Of the pictures that `pictures` gives, known before any is made."""
        raise Refusal(f"{self.name} data does not offer {Need.PICTURES}.", "Use another encoder.")

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """A view as pictures, for networks that look at these (spectrograms, frames).

        Returns:
            (B, K, C, H, W) K pictures a sample; and (B, K) float32, what each counts in the sample's mean, 0 where a
            sample has fewer than K. None where all count the same.
        """
        raise Refusal(f"{self.name} data does not offer {Need.PICTURES}.", "Use another encoder.")

    def token_count(self, batch: Batch) -> int:
        """N, the tokens of a view: one a step of its data, unless the kind of data makes patches."""
        return batch.data.shape[1]

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """(B, N) bool, true where a token of the view is to be hidden.

        Full samples hide exactly `hidden_count(N, ratio)` each, shorter ones no more than that.
        """
        raise Refusal(f"{self.name} data does not offer {Need.MASK}.")

    def hide(self, batch: Batch, mask: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        """Last word on how hidden tokens look (BERT's 80/10/10): the view and mask that the encoder is given."""
        return batch, mask

    def targets(self, batch: Batch) -> Tensor:
        """(B, N, ...) what each token of a view ought to be predicted as (normalised pixels, ids, values)."""
        raise Refusal(f"{self.name} data does not offer {Need.TARGETS}.")

    @property
    def target_dim(self) -> int:
        """Width of the prediction for one token."""
        raise Refusal(f"{self.name} data does not offer {Need.TARGETS}.")

    def target_bias(self) -> Tensor | None:
        """(target_dim,) the prediction of one that sees nothing, which heads start from; None for zeros."""
        return None

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, N, target_dim), (B, N, ...) → (B, N) loss of each token; missing values count nothing.

        Of ids (where `Need.IDS` is offered) it is the cross-entropy, which objectives may make in one sweep with its
        gradient in place of asking here (`labelfree.losses.vocabulary`).
        """
        raise Refusal(f"{self.name} data does not offer {Need.TARGETS}.")

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        """The samples of a view as `show` takes them, with predicted targets in the places of tokens.

        Args:
            view: of B samples with N tokens.
            prediction: (B, N, target_dim), NaN where nothing is known; None to leave the view as it is.
            mask: (B, N) bool, the tokens whose prediction is taken; None for all.
        """
        raise Refusal(f"{self.name} data cannot be shown as it is predicted.")

    @property
    def training_size(self) -> float:
        """How long (see `Dataset.sizes`) the samples of a training are at most; infinite where it does not matter."""
        return math.inf

    @property
    def moment(self) -> int:
        """Tokens in a row that belong to one moment (the squares of a frame): what comes next lies so many on."""
        return 1

    @property
    def alike(self) -> int:
        """Moments in a row that are much alike, so that the present one nearly tells those that follow."""
        return 1

    def grid(self, count: int) -> tuple[int, ...]:
        """How `count` tokens lie: (rows, columns) for pictures, (count,) for what has one direction."""
        return (count,)

    # ---- what runs are asked for as they are

    @property
    def vocabulary(self) -> Any:
        """What tokens that are ids stand for: `cls`, `sep`, `special`, `bytes_of`; see `modalities/text/tokens.py`.

        The training set for `next` has all of them end to end as `ids`, cut into blocks of `length`.
        """
        raise Refusal(f"{self.name} data does not offer {Need.IDS}.")

    def ids_of(self, words: str) -> list[int]:
        """The tokens that a text begins with."""
        raise Refusal(f"{self.name} data does not offer {Need.IDS}.")

    def words_of(self, ids: Sequence[int]) -> str:
        """The text that tokens stand for."""
        raise Refusal(f"{self.name} data does not offer {Need.IDS}.")

    def ends(self, dataset: Dataset) -> tuple[list[str], list[Sample]]:
        """What forecasts begin with: the names of a source's recordings, and the last whole tokens of each."""
        raise Refusal(f"{self.name} data cannot be forecast.", "Series can; texts can be continued: see generate.")

    def beginning(self, sample: Sample) -> Sample:
        """Some three quarters of a sample, in whole tokens, from which it is `continued` to see how well."""
        raise Refusal(f"{self.name} data cannot be forecast.", "Series can; texts can be continued: see generate.")

    def continued(self, predict_next: Callable[[Batch], Tensor], ends: Sequence[Sample], steps: int) -> np.ndarray:
        """(B, steps, C) values after `ends`, which are equally long: `predict_next` says the next tokens of a view."""
        raise Refusal(f"{self.name} data cannot be forecast.", "Series can; texts can be continued: see generate.")

    def nothing_seen(self) -> RecentEvents:
        """What a stream of events knows when it begins; `log` and `fresh_batch` serve it too."""
        raise Refusal(f"{self.name} data does not come as a stream of events.", "Give a run of events.")

    def log(self, source: Any) -> Log:
        """A source of events as it is read, with the features that the training data had."""
        raise Refusal(f"{self.name} data does not come as a stream of events.", "Give a run of events.")

    def fresh_batch(self, seen: RecentEvents, coming: Log) -> Batch:
        """A raw batch of events that come after those `seen`, each by itself; nothing is remembered of them."""
        raise Refusal(f"{self.name} data does not come as a stream of events.", "Give a run of events.")

    # ---- for people, and for baselines

    @abstractmethod
    def show(self, sample: Sample) -> str:
        """HTML that a person looks at: a thumbnail, a sparkline, a snippet. Escaped, self-contained."""

    def length_words(self, length: float) -> str:
        """How long a sample of so many steps is, as a person says it."""
        return f"{length:,.0f}"

    def row(self, sample: Sample) -> Mapping[str, str]:
        """The sample's values by name, as a person reads them, where it is a row of a table: several are then shown
        under one header. Empty for other kinds of data.
        """
        return {}

    @abstractmethod
    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Features without any network, (N, F) for each of train and others (dense, or a scipy sparse matrix).

        Pixels, window statistics, TF-IDF, fitted on `train` only; zeros for a sample that cannot be read. A classical
        model on them is the honest baseline.
        """

    def copy_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Features by which near copies are told, shaped as `raw_features`: these, unless they tell too little.

        Only copies with slight changes (noise, a gain, another encoding) may be close to each other in them.
        """
        return self.raw_features(train, others)


def hidden_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` are hidden: the share `ratio`, but at least one hidden and one left."""
    return max(1, min(tokens - 1, round(ratio * tokens)))


def token_mask(scores: Tensor, ratio: float, valid: Tensor | None = None) -> Tensor:
    """(B, N) scores → (B, N) bool: the share `ratio` of each sample's tokens, those with the lowest scores.

    Args:
        valid: (B, N) bool, false where a token is padding, which is never hidden; None where all are valid.
    """
    count: int | Tensor = hidden_count(scores.shape[1], ratio)
    if valid is not None:
        own = valid.sum(dim=1, keepdim=True)
        # one at least is hidden, and one left
        count = torch.maximum(torch.minimum((own * ratio).round(), own - 1), (own > 1).long()).clamp(max=count)
        scores = scores.masked_fill(~valid, torch.inf)
    return scores.argsort(dim=1, stable=True).argsort(dim=1) < count


def span_mask(
    draw: Draw, count: int, span: int, ratio: float, valid: Tensor | None = None, last: Tensor | None = None
) -> Tensor:
    """(B, N) bool: about the share `ratio` of each sample's tokens, in spans of `span` that begin anywhere, one of them
    shorter where fewer are left to hide.

    Args:
        valid: (B, N) bool, false where a token is padding, which is never hidden; None where all are valid.
        last: (B, N) bool, tokens that are hidden only where no others are left.
    """
    place = torch.arange(count, device=draw.key.device)
    block = (place + draw.integers("shift", span)[:, None]) // span
    score = draw.uniform("blocks", count // span + 2).gather(1, block) + 1e-4 * place / count
    if last is not None:
        score = score + 2.0 * last
    return token_mask(score, ratio, valid)
