"""The Objective contract: how a model learns without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.dataset import Description
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.settings import Settings


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gives.

    Attributes:
        loss: scalar, the mean over the global batch of this process's part (see `labelfree.distributed`).
        features: (B, D) pooled features of this process's samples, for watching health; detached.
        logs: further scalars to record, detached, never read on the hot path.
    """

    loss: Tensor
    features: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What a method gives back of samples, for people to look at beside these; see `Modality.rebuild`.

    Attributes:
        view: the samples, clean.
        shown: what the encoder saw of them; `hidden` (B, N) bool are the tokens that it did not see, if any.
        prediction: (B, N, target_dim) for the tokens in `asked` (B, N) bool; None for all.
    """

    view: Batch
    shown: Batch
    hidden: Tensor | None
    prediction: Tensor
    asked: Tensor | None = None


@dataclass(frozen=True)
class Recipe:
    """A named set of settings for an objective, which a user asks for like a method.

    Attributes:
        settings: of the objective.
        training: of the engine (learning_rate, optimizer, ...), where the paper's differ from the objective's.
        options: settings of the modality or encoder (augment, size), where the recipe needs them.
        modalities: names of those it is for; empty for all.
        encoder: preferred encoder spec, or None.
        source: paper, section.
    """

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    encoder: str | None = None


class Objective(nn.Module, ABC):
    """Owns the encoder while it learns, and heads, teacher, queue or prototypes; nothing of the training loop.

    All state is in `state_dict()`; all randomness comes from the `draw`. Statistics that couple samples go through
    `labelfree.distributed`, so that the loss of several processes is that of one.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Settings]]
    needs: ClassVar[frozenset[Need]]
    #: Recipes that this objective carries, by name.
    recipes: ClassVar[Mapping[str, Recipe]] = {}
    #: Training settings that suit it (optimizer, learning_rate, which is per 256 samples for sgd and lars only,
    #: weight_decay, ...), unless a recipe or the user says otherwise.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Settings of the modality that suit it, where that kind of data has them; recipes and users go first.
    options: ClassVar[Mapping[str, Any]] = {}
    #: Logs that show a collapse which features need not show: what each stays above while there is something to learn,
    #: and what it means where it does not.
    vital: Mapping[str, tuple[float, str]] = {}
    #: Names of its modules, with dots for those inside others, that are kept beside the encoder because they make
    #: something (text, pictures).
    keeps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, encoder: Encoder, modality: Modality, settings: Settings | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.modality = modality
        self.settings: Any = settings if settings is not None else self.settings_class()

    @classmethod
    def owners(cls) -> Mapping[str, type[Settings]]:
        """Name and settings of each part that owns some of the settings a user gives."""
        return {cls.name: cls.settings_class}

    @classmethod
    def settings_of(cls, shares: Mapping[str, Mapping[str, Any]]) -> Settings:
        """The settings that the owners' shares make. Raises LabelfreeError for values that are not allowed."""
        return cls.settings_class.read(shares[cls.name], cls.name)

    @abstractmethod
    def loss(self, batch: Batch, draw: Draw) -> Step:
        """The loss of a raw batch."""

    def expect(self, samples: int) -> None:
        """Told once, before the first step and before any state is loaded, that `Batch.index` is below `samples`: what
        is remembered of each sample gets its size here.
        """

    @classmethod
    def enough(cls, found: Description) -> int | None:
        """Steps after which more are known to add little on a source like this; None: all the time allowed is used."""
        return None

    @property
    def case(self) -> str:
        """Column whose equal values tie samples into cases: batches then bring a partner of each sample, another of its
        case (see `labelfree.data.partners`); "" for none.
        """
        return str(getattr(self.settings, "case", ""))

    @property
    def product(self) -> Encoder:
        """The encoder that the user keeps: the one that learns, unless the method averages it over the steps."""
        return self.encoder

    @property
    def next_head(self) -> nn.Module | None:
        """What makes of a token's features the prediction of the token after it, where the method has one to train."""
        return None

    def forward(self, batch: Batch, draw: Draw) -> Step:
        """`loss`, under the name that wrappers (DDP, FSDP, compile) call."""
        return self.loss(batch, draw)

    def anomaly_score(self, batch: Batch) -> Tensor:
        """(B,) how little each sample of a raw batch looks like the training data, higher for stranger ones.

        Raises:
            Refusal: the method does not say.
        """
        raise Refusal(f"Method '{self.name}' does not say how unusual a sample is.", "Pretrain with a pretext task.")

    def reconstruct(self, batch: Batch, draw: Draw) -> Reconstruction:
        """Samples of a raw batch, and what the method gives back of them. Raises Refusal where it gives nothing."""
        raise Refusal(f"Method '{self.name}' gives no samples back.", "Use masked, autoencoder or vae.")

    def sample(self, view: Batch, draw: Draw) -> Tensor:
        """(B, N, target_dim) for new samples of the size of those in `view`. Raises Refusal where it makes none."""
        raise Refusal(f"Method '{self.name}' makes no samples.", "Use vae.")

    def predict_next(self, view: Batch) -> Tensor:
        """(B, K, target_dim) for the tokens that follow a view: those of the next moment, and of as many later ones as
        are predicted at once. Raises Refusal where the method does not say.
        """
        raise Refusal(f"Method '{self.name}' does not say what comes next.", "Pretrain with --method next.")

    def predict_each(self, view: Batch) -> Tensor:
        """(B, N, target_dim): what comes next after each token of a view. Raises Refusal as `predict_next` does."""
        raise Refusal(f"Method '{self.name}' does not say what comes next.", "Pretrain with --method next.")

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step with the share of training done (0–1]: teachers and queues move here, by
        what `loss` put aside. A step whose gradient was not finite is skipped, and this with it; on a GPU, where the
        host does not wait to know, it is called all the same, and small buffers are put back afterwards.
        """

    def after_epoch(self) -> None:
        """Called after the last step of each pass over the samples, when `after_step` was: clusters are made here."""
