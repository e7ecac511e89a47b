"""Dilated convolutions over time: TS2Vec's encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, Hide
from labelfree.errors import LabelfreeError, nearest
from labelfree.modalities._series_tokens import patches, valid_tokens
from labelfree.modalities.base import Modality
from labelfree.needs import Need

if TYPE_CHECKING:
    from labelfree.modalities.series import Series


@dataclass(frozen=True)
class Shape:
    """Width inside, residual blocks before the last, width of the features."""

    hidden: int
    depth: int
    dim: int


#: `base` is the published shape.
SHAPES = {"tiny": Shape(32, 8, 128), "base": Shape(64, 10, 320), "large": Shape(128, 10, 640)}


class DilatedConv(nn.Module):
    """A convolution of width 3 over (B, T, C), zeros beyond the ends; causal: it looks back only.

    Taps that lie beyond both ends for every step are left out, which changes no number: a dilation as long as the
    series leaves a linear map.
    """

    def __init__(self, channels: int, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.dilation, self.causal = dilation, causal
        self.weight = nn.Parameter(torch.empty(width, channels, 3))
        self.bias = nn.Parameter(torch.empty(width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's own convolutions begin
        bound = 1 / math.sqrt(3 * channels)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation
        if d >= x.shape[1]:
            return F.linear(x, self.weight[:, :, 2 if self.causal else 1], self.bias)
        # (B, T, C) is what a channels-last picture one pixel high looks like in memory
        picture = x.transpose(1, 2).unsqueeze(2)
        if self.causal:
            picture = F.pad(picture, (2 * d, 0))
        padding = (0, 0 if self.causal else d)
        out = F.conv2d(picture, self.weight.unsqueeze(2), self.bias, padding=padding, dilation=(1, d))
        return out.squeeze(2).transpose(1, 2)


class Block(nn.Module):
    """GELU, convolution, GELU, convolution, and a way around them (Yue et al. 2022, appendix C.2)."""

    def __init__(self, channels: int, width: int, dilation: int, causal: bool, last: bool) -> None:
        super().__init__()
        self.first = DilatedConv(channels, width, dilation, causal)
        self.second = DilatedConv(width, width, dilation, causal)
        self.around = nn.Linear(channels, width) if channels != width or last else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        inner = self.first(_only(F.gelu(x), valid))
        return self.around(x) + self.second(_only(F.gelu(inner), valid))


def _only(x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T, C) with zeros in padding, as beyond the ends."""
    return x if valid is None else x * valid[..., None]


class Dilated(Encoder):
    """`dilated:tiny|base|large`: a token a time step, pooled by its maximum (Yue et al. 2022, "TS2Vec", §3.2).

    An input projection, whose hidden and missing steps are zeroed; residual blocks with dilation 1, 2, 4, …; dropout on
    the result. A step of several channels of which some are missing keeps the others.
    """

    name = "dilated"
    modalities = frozenset({"series"})
    hides: tuple[Hide, ...] = ("replace",)

    def __init__(
        self, channels: int, patch: int, hidden: int, depth: int, dim: int, causal: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.patch, self.dim, self.dropout = patch, dim, dropout
        self.can = frozenset({Need.TOKENS, Need.MASK}) | (frozenset({Need.CAUSAL}) if causal else frozenset())
        self.project = nn.Linear(patch * channels, hidden)
        widths = [*[hidden] * depth, dim]
        self.blocks = nn.ModuleList(
            Block(before, width, 2**number, causal, last=number == depth)
            for number, (before, width) in enumerate(zip([hidden, *widths], widths, strict=False))
        )

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        variant = variant or "base"
        if variant not in SHAPES:
            raise LabelfreeError(
                f"There is no encoder 'dilated:{variant}': there are {', '.join(SHAPES)}.", nearest(variant, SHAPES)
            )
        series: Series = modality  # type: ignore[assignment]
        shape = SHAPES[variant]
        return cls(series.channels, series.suggest_patch(1), shape.hidden, shape.depth, shape.dim, causal=causal)

    @classmethod
    def variants(cls) -> list[str]:
        return list(SHAPES)

    def forward(self, batch: Batch, mask: Tensor | None = None, hide: Hide = "replace") -> Features:
        cut = patches(batch.data, self.patch)
        missing = cut.isnan()
        local = self.project(cut.masked_fill(missing, 0.0))
        valid = valid_tokens(batch, self.patch)
        gone = missing.all(dim=2)
        x = local.masked_fill((gone if mask is None else gone | mask)[..., None], 0.0)
        for block in self.blocks:
            x = block(x, valid)
        if self.training and batch.draw is not None:
            x = batch.draw.dropout("representation", x, self.dropout)
        return Features(pooled=_greatest(x, valid), tokens=x, valid=valid, local=local)

    @property
    def local_dim(self) -> int:
        return self.project.out_features

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(self.project.parameters()), *(list(block.parameters()) for block in self.blocks)]


def _greatest(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T, D) → (B, D): the maximum over valid steps."""
    if valid is not None:
        tokens = tokens.masked_fill(~valid[..., None], torch.finfo(tokens.dtype).min)
    return tokens.amax(dim=1)
