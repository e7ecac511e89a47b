"""The block that the shared transformer and the decoders are made of, with the names and shapes of timm's; how blocks
start, and codes of places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.data.draw import Draw


@dataclass(frozen=True)
class Dropout:
    """Dropout that belongs to the samples: one choice of channels for all tokens of a sample.

    Padding changes nothing, and a mean over tokens does not average it away (Gal & Ghahramani 2016).

    Attributes:
        draw: the randomness of the B samples.
        rate: probability that a channel is dropped.
        rows: (M,) the sample that each row of the tokens belongs to; None where they are the samples.
        name: of the place in the network.
    """

    draw: Draw
    rate: float
    rows: Tensor | None = None
    name: str = ""

    def at(self, name: str | int) -> Dropout:
        return replace(self, name=f"{self.name}/{name}")

    def __call__(self, name: str, x: Tensor) -> Tensor:
        ones = torch.ones(len(self.draw), x.shape[-1], device=x.device)
        factor = self.draw.dropout(f"{self.name}/{name}", ones, self.rate).to(x.dtype)
        return x * (factor if self.rows is None else factor[self.rows])[:, None]


class Attention(nn.Module):
    """Scaled dot products of several heads (Vaswani et al. 2017, §3.2)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, N, D) → (B, N, D); `seen`, bool and broadcast to (B, heads, N, N), says what a token looks at."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = _attend(q, k, v, seen, causal)
        return self.proj(out.transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
    """torch's fused attention, but where its backward pass takes longer than all the rest of a step: in half precision
    on a CPU (twice as long a step, measured with torch 2.15).
    """
    if not q.is_cpu or q.dtype == torch.float32 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1) @ v


class Mlp(nn.Module):
    """Two layers with GELU between, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm block (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", §3.1).

    It computes what timm's `vision_transformer.Block` does from a state of the same names; importing that one takes as
    long as torch.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(
        self, x: Tensor, seen: Tensor | None = None, causal: bool = False, drop: Dropout | None = None
    ) -> Tensor:
        """(B, N, D) → (B, N, D); see `Attention`. `drop` acts on both branches."""
        attended = self.attn(self.norm1(x), seen, causal)
        x = x + (attended if drop is None else drop("attention", attended))
        turned = self.mlp(self.norm2(x))
        return x + (turned if drop is None else drop("mlp", turned))


def initialise(module: nn.Module) -> None:
    """Weights that keep the variance of what comes in (LeCun et al. 1998, "Efficient BackProp", §4.6).

    The usual deviation of .02 is for widths of about a thousand; at 128 it leaves attention blind for long.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sinusoids(grid: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(N, width) fixed position codes of the places of a grid, an equal share of the width for each direction."""
    share = width // (2 * len(grid))
    rates = torch.exp(torch.arange(share, device=device) * (-math.log(10000.0) / share))
    places = torch.cartesian_prod(*(torch.arange(count, device=device) for count in grid)).view(-1, len(grid))
    angles = (places[:, :, None] * rates).flatten(1)
    codes = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(codes, (0, width - codes.shape[1]))
