"""The one transformer of every kind of data but pictures (which have timm's ViT): a stem, then blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Features, Hide, Over, mean_of, normalised
from labelfree.encoders.block import Block, Dropout, initialise
from labelfree.encoders.transformer import Transformer
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import take
from labelfree.needs import Need

#: Standard deviation of the vectors of ids in a new network.
EMBEDDED = 0.02
#: tokens (M, n, ...), their validity (M, n) or None, and which sample of the batch each row is of → tokens (M, n, D)
Run = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class Trunk(Transformer):
    """Stem, sinusoidal positions, pre-norm blocks, a last norm. `pooled` is the mean of the valid tokens.

    A sequence longer than `window` tokens is read window by window, as if each were a sample, and its tokens are put
    together again: long samples cost linear time, and their positions are ones that pretraining has seen.

    Arguments:
        stem: `stem(batch) -> (tokens (B, N, D), valid (B, N) bool or None where all are)`; it must decide from
            `batch.lengths is None`, not from values, whether there is padding.
        dim, depth, heads: width D, blocks and attention heads (see `labelfree.encoders.transformer.SIZES`).
        causal: each token sees only itself and those before it.
        dropout: of every residual branch and of the input. It needs `batch.draw`; without one, or in evaluation,
            nothing is dropped.
        window: tokens that attend to one another; 0 for all.
    """

    hides: tuple[Hide, ...] = ("replace", "drop")

    def __init__(
        self,
        stem: nn.Module,
        dim: int,
        depth: int,
        heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.causal, self.dropout, self.window = dim, causal, dropout, window
        self.can = frozenset({Need.TOKENS, Need.MASK}) | (frozenset({Need.CAUSAL}) if causal else frozenset())
        self.stem = stem
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.blocks.apply(initialise)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        local, valid = self.stem(batch)
        x = local
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self.norm_in(x)
        run = partial(self._blocks, self._dropout(batch))
        if kept is not None:
            if valid is not None:
                raise LabelfreeError(
                    "Hidden tokens cannot be dropped from samples of unequal length.", "Let them be replaced."
                )
            x = run(take(x + positions(x), kept), None, None)
        else:
            x = self._by_windows(run, x, valid)
        return Features(pooled=mean_of(x, valid), tokens=x, valid=valid, local=local)

    def deep(self, batch: Batch, layers: int, over: Over = "features") -> Tensor:
        local, valid = self.stem(batch)
        run = partial(self._blocks, None, deep=layers, over=over)
        return self._by_windows(run, self.norm_in(local), valid)

    def _by_windows(self, run: Run, x: Tensor, valid: Tensor | None) -> Tensor:
        # counting windows that hold nothing would stop the host in each step of a training on a GPU
        every = self.training and x.is_cuda
        return by_windows(lambda x, *of: run(x + positions(x), *of), x, valid, self.window, every)

    def _blocks(
        self,
        drop: Dropout | None,
        x: Tensor,
        valid: Tensor | None,
        rows: Tensor | None,
        deep: int = 0,
        over: Over = "features",
    ) -> Tensor:
        """The normalised output of the last block, or the mean of those of the last `deep` blocks."""
        attend = None if valid is None else _attendable(valid, self.causal)
        if drop is not None:
            drop = replace(drop, rows=rows)
            x = drop("input", x)
        found: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x, attend, self.causal and attend is None, None if drop is None else drop.at(number))
            if number >= len(self.blocks) - deep:
                found.append(normalised(x, over, valid))
        return torch.stack(found).mean(dim=0) if found else self.norm(x)

    def _dropout(self, batch: Batch) -> Dropout | None:
        if not self.training or self.dropout == 0 or batch.draw is None:
            return None
        return Dropout(batch.draw, self.dropout, name="trunk")

    def token_table(self) -> nn.Parameter | None:
        embedding = getattr(self.stem, "embedding", None)
        return cast(nn.Parameter, embedding.weight) if isinstance(embedding, nn.Embedding) else None

    @torch.no_grad()
    def pass_tokens_on(self) -> None:
        """Let every block begin as if it were not there: the last layer of each branch is zero (Zhang et al. 2019,
        "Fixup Initialization", §3), and what the stem knows of tokens comes out as it went in.
        """
        for block in self.blocks:
            branches: Any = block
            nn.init.zeros_(branches.attn.proj.weight)
            nn.init.zeros_(branches.mlp.fc2.weight)

    def passed_on(self, batch: Batch) -> Tensor:
        """(B, N, D) what the tokens of samples without padding come out as while blocks pass them on."""
        x = self.norm_in(self.stem(batch)[0])
        return self.norm(x + positions(x))

    @torch.no_grad()
    def rescale(self) -> None:
        table = self.token_table()
        if table is not None:
            table.mul_(EMBEDDED / table.std(dim=1, keepdim=True).clamp_min(1e-12))

    def layers(self) -> list[list[nn.Parameter]]:
        first = [*self.stem.parameters(), self.mask_token, *self.norm_in.parameters()]
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm.parameters())]


def by_windows(run: Run, x: Tensor, valid: Tensor | None, size: int, every: bool = False) -> Tensor:
    """Run on each window of `size` tokens as on a sample of its own, and put the tokens (B, N, D) together again.

    Windows of nothing but padding are left out, unless `every` one is asked for.
    """
    samples, count = x.shape[:2]
    if not size or count <= size:
        return run(x, valid, None)
    windows = -(-count // size)
    extra = windows * size - count
    if extra or valid is not None:
        valid = torch.ones(samples, count, dtype=torch.bool, device=x.device) if valid is None else valid
        valid = F.pad(valid, (0, extra)).reshape(samples * windows, size)
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, extra)).reshape(samples * windows, size, *x.shape[2:])
    rows = torch.arange(samples, device=x.device).repeat_interleave(windows)
    if valid is None or every:
        out = run(x, valid, rows)
    else:
        kept = valid.any(dim=1).nonzero().squeeze(1)
        some = run(x[kept], valid[kept], rows[kept])
        out = some.new_zeros(len(x), *some.shape[1:]).index_copy(0, kept, some)
    return out.reshape(samples, windows * size, -1)[:, :count]


def _attendable(valid: Tensor, causal: bool) -> Tensor:
    """(B, N) valid → bool mask for attention; a row without any valid token sees itself, so that no NaN is born."""
    seen = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None, :]
    if not causal:
        return seen
    count = valid.shape[1]
    past = torch.ones(count, count, dtype=torch.bool, device=valid.device).tril()
    return (seen & past) | torch.eye(count, dtype=torch.bool, device=valid.device)


def positions(x: Tensor) -> Tensor:
    """(N, D) sinusoids for the tokens of `x` (B, N, D) (Vaswani et al. 2017, §3.5): any length, nothing to learn."""
    count, dim = x.shape[-2:]
    rate = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(10000.0) / dim))
    angle = torch.arange(count, device=x.device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)
