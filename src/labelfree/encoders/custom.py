"""Any network of the user's as an encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, check_weights, evaluating
from labelfree.errors import LabelfreeError, reason_of
from labelfree.modalities.base import Modality
from labelfree.needs import Need


@torch.no_grad()
def _sent_through(network: nn.Module, example: Batch) -> object:
    """What a network makes of a view. Raises LabelfreeError where it cannot take it."""
    home = next((parameter.device for parameter in network.parameters()), example.data.device)
    try:
        with evaluating(network):
            return network(example.data.to(home))
    except Exception as error:  # a user's network may raise anything
        shape = ", ".join(map(str, example.data.shape[1:]))
        raise LabelfreeError(
            f"{type(network).__name__} could not encode data of shape (B, {shape}): {reason_of(error)}.",
            "Give a network that takes such batches.",
        ) from error


class Custom(Encoder):
    """A user's `nn.Module`, called with a view's tensor.

    It may return pooled features (B, D), a feature map (B, D, H, W), or tokens (B, N, D), whose mean over valid steps
    is then the pooled feature. It keeps its weights and names: `encoder.network` is the module that was given.

    Args:
        network: takes the view's `data` ((B, C, H, W), (B, T, C) or (B, T) ids).
        dim: width D of what it returns.
        shape: "pooled", "tokens" or "map".
    """

    name = "custom"

    def __init__(self, network: nn.Module, dim: int, shape: str) -> None:
        super().__init__()
        self.network = network
        self.dim = dim
        self.shape = shape
        if shape != "pooled":
            self.can = frozenset({Need.TOKENS})

    @classmethod
    def wrap(cls, network: nn.Module, modality: Modality, example: Batch | None = None) -> Encoder:
        """Wrap a network; one that is an `Encoder` already is returned as it is.

        Its `dim` and `shape` attributes say what it returns where it has them; else `example` (a view) is sent through.

        Raises:
            LabelfreeError: it cannot take the data, its output is of no known form, or nothing says how wide it is.
        """
        if isinstance(network, Encoder):
            return network
        if hasattr(network, "dim"):
            return cls(network, int(network.dim), str(getattr(network, "shape", "pooled")))  # type: ignore[arg-type]
        if example is None:
            raise LabelfreeError(
                f"The width of {type(network).__name__}'s features is not known.",
                "Give it an attribute `dim` (and `shape`: pooled, tokens or map).",
            )
        out = _sent_through(network, example)
        if not isinstance(out, Tensor) or out.ndim not in (2, 3, 4) or len(out) != len(example):
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise LabelfreeError(
                f"{type(network).__name__} returned {found} for {len(example)} samples, not features.",
                "Return (B, D), (B, N, D) or (B, D, H, W).",
            )
        shape = {2: "pooled", 3: "tokens", 4: "map"}[out.ndim]
        return cls(network, out.shape[1] if shape == "map" else out.shape[-1], shape)

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        raise LabelfreeError(
            "This run was trained with a network of yours, whose code is not in the run's files.",
            "Give it: labelfree.load(path, encoder=network).",
        )

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        out = self.network(batch.data)
        if self.shape == "pooled":
            return Features(out)
        tokens = out.flatten(2).transpose(1, 2) if self.shape == "map" else out
        if batch.lengths is None or tokens.shape[1] != batch.data.shape[1]:
            return Features(tokens.mean(dim=1), tokens)
        steps = batch.lengths.new_ones(len(batch), tokens.shape[1]).cumsum(dim=1)
        valid = steps <= batch.lengths[:, None]
        weights = valid[..., None].to(tokens.dtype)
        return Features((tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1), tokens, valid)

    def library_state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_library_state(self, state: dict[str, Tensor], where: str = "the file") -> None:
        check_weights(self.network.state_dict(), state, where, "Give the network that they come from.")
        self.network.load_state_dict(state)
