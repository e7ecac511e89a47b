"""What autoencoders predict tokens with: a small transformer from the visible ones, an MLP from one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labelfree.encoders.block import Block, sinusoids
from labelfree.losses.masked import fill_in, hidden_positions, take

#: Channels of one attention head.
HEAD = 32


class Decoder(nn.Module):
    """Mask tokens beside the encoded visible ones, blocks, and a linear prediction (He et al. 2022, MAE, §3).

    Arguments:
        dim: width D of the encoder.
        width: of the decoder, a multiple of 32.
        depth: blocks.
        out: width of the prediction for one token.
    """

    def __init__(self, dim: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, width // HEAD) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, out)

    def forward(
        self, visible: Tensor, mask: Tensor, positions: Tensor, grid: Sequence[int], alone: bool = False
    ) -> Tensor:
        """Predictions (B, K, out) at `positions` (B, K).

        Args:
            visible: (B, V, D) encoded tokens that were not dropped, in order.
            mask: (B, N) bool, true where dropped.
            grid: how the N tokens lie.
            alone: without mask tokens for what is hidden elsewhere (Assran et al. 2023, I-JEPA, §3).
        """
        x = self.embed(visible)
        place = sinusoids(grid, x.shape[2], x.device).to(x.dtype)
        if not alone:
            x = fill_in(x, mask, self.mask_token) + place
            return self.predict(take(self.norm(self.blocks(x)), positions))
        seen, _ = hidden_positions(~mask, x.shape[1])
        x = torch.cat([x + place[seen], self.mask_token.to(x.dtype) + place[positions]], dim=1)
        return self.predict(self.norm(self.blocks(x)[:, seen.shape[1] :]))


class Broadcast(nn.Module):
    """The tokens of a sample from one vector: it is put down at every place, beside the code of the place, and an MLP
    turns the two into a prediction (after Watters et al. 2019, "Spatial Broadcast Decoder", §2).

    Tokens do not see each other, so that padding makes no difference.

    Arguments:
        dim: width D of the vector.
        width: of the decoder.
        depth: residual blocks.
        out: width of the prediction for one token.
    """

    def __init__(self, dim: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.place = nn.Linear(width, width)
        blocks = [Residual(width) for _ in range(depth)]
        self.predict = nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, out))

    def put_down(self, vector: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, D) → (B, N, width) at the N places of a grid."""
        code = sinusoids(grid, self.place.in_features, vector.device).to(vector.dtype)
        return self.embed(vector)[:, None] + self.place(code)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → predictions (B, N, out)."""
        found: Tensor = self.predict(x)
        return found


class Residual(nn.Sequential):
    """An MLP with a layer norm before it, whose output is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)
