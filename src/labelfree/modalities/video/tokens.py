"""Films as tokens: tubes (the same square of a few frames in a row), and the stem that a transformer reads them by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch, entries


def tubes(x: Tensor, tube: int, patch: int) -> Tensor:
    """(B, T, C, S, S) → (B, N, tube · patch · patch · C): moment by moment, in each row by row."""
    count, frames, channels, side, _ = x.shape
    t, g = frames // tube, side // patch
    x = x.reshape(count, t, tube, channels, g, patch, g, patch)
    return x.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(count, t * g * g, tube * patch * patch * channels)


def joined(tokens: Tensor, tube: int, patch: int, side: int) -> Tensor:
    """(B, N, tube · patch · patch · C) → (B, T, C, side, side), the inverse of `tubes`."""
    g = side // patch
    x = tokens.reshape(len(tokens), -1, g, g, tube, patch, patch, tokens.shape[2] // (tube * patch * patch))
    return x.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(len(tokens), -1, x.shape[-1], side, side)


def frames_at(data: Tensor, places: Tensor) -> Tensor:
    """(B, L, ...), (B, T) → (B, T, ...): frames by number; the last one again beyond the end."""
    rows = torch.arange(len(data), device=data.device)[:, None]
    return entries(data, (rows, places.clamp(0, data.shape[1] - 1)))


class VideoStem(nn.Module):
    """Tubes of a view → tokens, by a linear map (Arnab et al. 2021, ViViT, §3.2: tubelet embedding)."""

    def __init__(self, channels: int, tube: int, patch: int, dim: int) -> None:
        super().__init__()
        self.tube, self.patch = tube, patch
        self.embed = nn.Linear(tube * patch * patch * channels, dim)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.embed(tubes(batch.data, self.tube, self.patch)), None
