"""Dilated convolutions over time: TS2Vec's encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, Hide
from labelfree.errors import LabelfreeError, nearest
from labelfree.modalities.base import Modality
from labelfree.modalities.series.tokens import patches, valid_tokens
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
#: Multiplications in a matrix product below which half precision does not pay on a CPU.
_SMALL = 1 << 22


class _Convolve(torch.autograd.Function):
    """A convolution over time-major rows: row t·B + b is step t of sample b, so a shift in time is a shift in rows.

    Each tap is one matrix product of a stretch of rows, added in place; a tap that reaches beyond the series for every
    step costs nothing. In float32 the stretches are cut where the series ends, which saves products with zeros. In half
    precision the rows are copied anyway, so they are copied between zeros, and all stretches are of one shape:
    libraries prepare a product anew for each shape, and the lengths of crops differ at every step.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, shifts: tuple[int, ...], kind: torch.dtype
    ) -> Tensor:
        """(R, C) rows, (K, O, C) taps, (O,) bias → (R, O) of type `kind`; tap k looks `shifts[k]` rows ahead."""
        held, start = _between_zeros(rows, shifts, kind)
        weight, here = weight.to(kind), shifts.index(0)
        out = torch.addmm(bias.to(kind), held[start : start + len(rows)], weight[here].t())
        for tap, target, source in _taps(shifts, len(rows), start):
            out[target].addmm_(held[source], weight[tap].t())
        ctx.save_for_backward(held, weight)
        ctx.start, ctx.shifts, ctx.kinds = start, shifts, (rows.dtype, bias.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        held, weight = ctx.saved_tensors
        start, shifts, (kind, own) = ctx.start, ctx.shifts, ctx.kinds
        grad, count, here = grads[0].contiguous(), len(grads[0]), shifts.index(0)
        to_weight = torch.zeros_like(weight)
        torch.mm(grad.t(), held[start : start + count], out=to_weight[here])
        for tap, target, source in _taps(shifts, count, start):
            torch.mm(grad[target].t(), held[source], out=to_weight[tap])
        back = tuple(-shift for shift in shifts)  # where a row was looked at from
        held, start = _between_zeros(grad, back, grad.dtype)
        to_rows = grad @ weight[here]
        for tap, target, source in _taps(back, count, start):
            to_rows[target].addmm_(held[source], weight[tap])
        return to_rows.to(kind), to_weight.to(own), grad.sum(dim=0, dtype=own), None, None


def _between_zeros(rows: Tensor, shifts: tuple[int, ...], kind: torch.dtype) -> tuple[Tensor, int]:
    """The rows as they are looked at, and where the first one is."""
    if kind not in (torch.bfloat16, torch.float16):
        return rows.to(kind), 0
    reach = max((abs(shift) for shift in shifts if abs(shift) < len(rows)), default=0)
    held = rows.new_zeros(len(rows) + 2 * reach, rows.shape[1], dtype=kind)
    held[reach : reach + len(rows)] = rows
    return held, reach


def _taps(shifts: tuple[int, ...], rows: int, start: int) -> Iterator[tuple[int, slice, slice]]:
    """Of the taps that look elsewhere, those that find something: (tap, rows that look, held rows looked at)."""
    for tap, shift in enumerate(shifts):
        if shift == 0 or abs(shift) >= rows:
            continue
        if start:
            yield tap, slice(0, rows), slice(start + shift, start + shift + rows)
        else:
            early, late = slice(0, rows - abs(shift)), slice(abs(shift), rows)
            yield (tap, early, late) if shift > 0 else (tap, late, early)


class DilatedConv(nn.Module):
    """A convolution of width 3 over (T, B, C), zeros beyond the ends; causal: it looks back only."""

    def __init__(self, channels: int, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.shifts = (-2 * dilation, -dilation, 0) if causal else (-dilation, 0, dilation)
        bound = 1 / math.sqrt(3 * channels)  # as torch's own convolutions begin
        self.weight = nn.Parameter(torch.empty(3, width, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor, kind: torch.dtype) -> Tensor:
        """(T, B, channels) → (T, B, width) by products in precision `kind`, but for small ones on a CPU."""
        steps, batch, channels = x.shape
        if x.is_cpu and x.numel() * len(self.bias) < _SMALL:
            kind = x.dtype
        rows, shifts = x.reshape(steps * batch, channels), tuple(shift * batch for shift in self.shifts)
        return _Convolve.apply(rows, self.weight, self.bias, shifts, kind).view(steps, batch, -1)


class Block(nn.Module):
    """GELU, convolution, GELU, convolution, and a way around them (Yue et al. 2022, appendix C.2)."""

    def __init__(self, channels: int, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.first = DilatedConv(channels, width, dilation, causal)
        self.second = DilatedConv(width, width, dilation, causal)
        self.around = nn.Linear(channels, width) if channels != width else None

    def forward(self, x: Tensor, valid: Tensor | None, kind: torch.dtype) -> Tensor:
        """(T, B, channels) → (T, B, width); products in precision `kind` are added to what is in float32."""
        inner = self.first(_only(F.gelu(x), valid), kind)
        around = x if self.around is None else _linear(self.around, x, inner.dtype)
        return around + self.second(_only(F.gelu(inner), valid), kind)


def _linear(layer: nn.Linear, x: Tensor, kind: torch.dtype) -> Tensor:
    """The layer, computed in precision `kind`."""
    return F.linear(x.to(kind), layer.weight.to(kind), layer.bias.to(kind)).to(x.dtype)


def _only(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros in padding, as beyond the ends. valid (T, B, 1)."""
    return x if valid is None else x * valid.to(x.dtype)


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
            Block(before, width, 2**number, causal)
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

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        device = batch.data.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else batch.data.dtype
        with torch.autocast(device, enabled=False):
            cut = patches(batch.data, self.patch).transpose(0, 1)  # time comes first from here on
            missing = cut.isnan()
            local = self.project(cut.masked_fill(missing, 0.0))
            valid = valid_tokens(batch, self.patch)
            gone = missing.all(dim=2)
            x = local.masked_fill((gone if mask is None else gone | mask.t())[..., None], 0.0)
            inside = None if valid is None else valid.t()[..., None]
            for block in self.blocks:
                x = block(x, inside, kind)
            tokens = x.transpose(0, 1)
            if self.training and batch.draw is not None:
                tokens = batch.draw.dropout("representation", tokens, self.dropout)
            return Features(_greatest(tokens, valid), tokens, valid, local.transpose(0, 1))

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
