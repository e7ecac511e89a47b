"""Series as tokens: patches of consecutive steps, and the stem that a transformer reads them through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelfree.data.batch import Batch


def patches(data: Tensor, patch: int, lengths: Tensor | None = None) -> Tensor:
    """(B, T, C), whose samples are (B,) `lengths` long → (B, N, patch · C) with N = ⌈T / patch⌉; steps beyond the end
    of a sample are NaN, whatever it was padded with.
    """
    if lengths is not None:
        beyond = torch.arange(data.shape[1], device=data.device) >= lengths[:, None]
        data = data.masked_fill(beyond[..., None], torch.nan)
    missing = -data.shape[1] % patch
    if missing:
        data = F.pad(data, (0, 0, 0, missing), value=float("nan"))
    return data.reshape(data.shape[0], -1, patch * data.shape[2])


def valid_tokens(batch: Batch, patch: int) -> Tensor | None:
    """(B, N) bool, true where a token has a step of its sample; None where there is no padding."""
    if batch.lengths is None:
        return None
    count = -(-batch.data.shape[1] // patch)
    return torch.arange(count, device=batch.data.device) * patch < batch.lengths[:, None]


class SeriesStem(nn.Module):
    """Patches of a view → tokens: a linear map of the values (zero where missing) and of which are missing."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.values = nn.Linear(patch * channels, dim)
        self.missing = nn.Linear(patch * channels, dim, bias=False)
        nn.init.zeros_(self.missing.weight)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        cut = patches(batch.data, self.patch, batch.lengths)
        absent = cut.isnan()
        tokens = self.values(cut.masked_fill(absent, 0.0)) + self.missing(absent.to(self.missing.weight.dtype))
        return tokens, valid_tokens(batch, self.patch)
