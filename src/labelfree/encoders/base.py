"""The Encoder contract: the network that the user keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders._chunks import in_chunks
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Modality
from labelfree.needs import Need

Hide = Literal["replace", "drop"]
#: What is brought to mean 0 and variance 1: each token over its features, or each feature over a sample's tokens.
Over = Literal["features", "tokens"]


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder returns.

    Attributes:
        pooled: (B, D) one vector a sample.
        tokens: (B, N, D) one vector a token; where hidden tokens were dropped, only the visible ones, in order.
        valid: (B, N) bool, false where a token is padding; None where all are valid.
        local: (B, N, `local_dim`) the tokens before any context was mixed in (what predictive coding predicts), if any.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    valid: Tensor | None = None
    local: Tensor | None = None


def check_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises LabelfreeError where weights differ from a network's `own` in names or shapes, naming a few of them.

    Args:
        where: where they come from.
        remedy: what to do where only shapes differ.
    """
    unnamed = [f"{name} is missing" for name in sorted(own.keys() - given.keys())]
    unnamed += [f"{name} is unknown" for name in sorted(given.keys() - own.keys())]
    unlike = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and value.shape != given[name].shape
    ]
    faults = unnamed + unlike
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise LabelfreeError(
            f"The weights in {where} do not fit the network: {'; '.join(faults[:3])}{more}.",
            "Name the encoder they come from with --encoder." if unnamed else remedy,
        )


class Encoder(nn.Module, ABC):
    """A network from views to features. Its constructor's arguments are JSON-ready, so that `build` can repeat it."""

    #: The first half of the name a user gives ("timm" in "timm:resnet18").
    name: ClassVar[str]
    #: What every encoder of this class can do; an instance may know better (a ViT can hide tokens, a ResNet cannot).
    can: frozenset[Need] = frozenset()
    #: Ways in which tokens can be hidden (`mask` replaces, `kept` drops), the preferred one first.
    hides: tuple[Hide, ...] = ()
    #: Width D of the features.
    dim: int
    #: Name under which this network is built again, where the one it was asked for may not last (a folder that moves).
    spec: str = ""
    #: Whether the pooled features depend on the order of a sample's parts.
    sees_order: bool = True
    #: Whether features depend on the samples seen before: such an encoder is shown a source from its start, in order.
    remembers: bool = False
    #: Rows of a batch that are encoded at a time, to save memory; 0 for all.
    micro_batch: int = 0
    #: The modalities it serves; empty for all.
    modalities: ClassVar[frozenset[str]] = frozenset()
    #: What a modality has to offer for it.
    needs: ClassVar[frozenset[Need]] = frozenset()

    @classmethod
    @abstractmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        """The encoder `name:variant` for data of this modality, freshly initialised from torch's generator.

        Raises:
            LabelfreeError: unknown variant (with the nearest), or `causal` where it cannot be.
        """

    @classmethod
    def serves(cls, modality: Modality | type[Modality]) -> bool:
        """Whether it can be built for data of this kind."""
        return (not cls.modalities or modality.name in cls.modalities) and cls.needs <= modality.offers

    @classmethod
    def variants(cls) -> list[str]:
        """Names worth listing."""
        return []

    @classmethod
    def options(cls, variant: str) -> Mapping[str, Any]:
        """Settings of the modality that the variant brings with it (its own tokenizer); recipes and users go first."""
        return {}

    @classmethod
    def lasting(cls, variant: str) -> str:
        """The variant as it is found again from another working directory, where it names a folder."""
        return variant

    def __call__(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Any:
        """`forward`, for `micro_batch` rows at a time where that is set."""
        run = super().__call__
        if 0 < self.micro_batch < len(batch):
            return in_chunks(self, run, batch, mask, kept, self.micro_batch)
        return run(batch) if mask is None and kept is None else run(batch, mask, kept)

    @abstractmethod
    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        """Features of a view.

        Args:
            batch: a view, from the modality's `view` or `prepare`.
            mask: (B, N) bool, true where a token is hidden behind a learnt vector.
            kept: (B, V) int64, ascending, the only tokens that the first block is given: all others are dropped.
        """

    def deep(self, batch: Batch, layers: int, over: Over = "features") -> Tensor:
        """(B, N, D) what a teacher says of each token of a view: the mean of what the last `layers` blocks give, each
        normalised (Baevski et al. 2022, data2vec, §3.3). Of a network that does not say: its normalised tokens.
        """
        features = self(batch)
        return normalised(features.tokens, over, features.valid)

    def reset(self) -> None:
        """Forget the samples seen before."""

    def remember(self, view: Batch) -> None:
        """Take in the samples of a view, which follow those seen before. In training `forward` does so by itself."""

    @property
    def local_dim(self) -> int:
        """Width of `Features.local`."""
        return self.dim

    def token_table(self) -> nn.Parameter | None:
        """(V, D) the vector of each id, where inputs are ids of a vocabulary: heads that predict ids share it."""
        return None

    def spread(self) -> nn.Module | None:
        """A new module (view, tokens (B, N, D), mask (B, N)) → (B, N, D) that fills in hidden tokens from those linked
        to them, for heads that predict what was hidden; None where a head can do without.
        """
        return None

    def rescale(self) -> None:
        """Bring weights whose scale changes nothing, since a norm follows, back to that of a new network.

        They grow in training, and a step of the optimiser then turns them less; before all layers learn anew from
        labels they ought to turn as easily as those of the network from scratch.
        """

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters from input to output, for layer-wise learning-rate decay; one group by default."""
        return [list(self.parameters())]

    def library_state(self) -> dict[str, Any]:
        """The weights as the library that the network came from names them; its own `state_dict` elsewhere."""
        return self.state_dict()

    def load_library_state(self, state: dict[str, Any], where: str = "the file") -> None:
        """Take weights in the library's own names. Raises LabelfreeError naming `where` and what does not fit."""
        check_weights(self.state_dict(), state, where, "Set the sizes that they were trained with.")
        self.load_state_dict(state)


def mean_of(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """(B, N, D) → (B, D): the mean of the valid tokens."""
    if valid is None:
        return tokens.mean(dim=1)
    weight = valid[..., None].to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def normalised(tokens: Tensor, over: Over, valid: Tensor | None = None) -> Tensor:
    """(B, N, D), (B, N) → (B, N, D) with mean 0 and variance 1, over the features of each token, or of each feature
    over the valid tokens of a sample, which leaves nothing of what all of them share.
    """
    if over == "features":
        return F.layer_norm(tokens, tokens.shape[-1:])
    tokens = tokens.float()
    apart = tokens - mean_of(tokens, valid)[:, None]
    return apart * (mean_of(apart.square(), valid)[:, None] + 1e-5).rsqrt()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module of a network in evaluation mode, and afterwards in the mode that it was in: some may be frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
