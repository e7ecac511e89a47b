"""Events as tokens of the shared transformer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Features
from labelfree.encoders.trunk import Trunk
from labelfree.modalities.events.views import real_tokens


class EventStem(nn.Module):
    """Tokens of a view: a linear map of their channels (zero where missing) and of which are missing."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.values = nn.Linear(channels, dim)
        self.missing = nn.Linear(channels, dim, bias=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        absent = batch.data.isnan()
        tokens = self.values(batch.data.nan_to_num()) + self.missing(absent.to(self.missing.weight.dtype))
        return tokens, real_tokens(batch)


class EventTrunk(Trunk):
    """The shared transformer on an event and the recent histories of its ends (Yu et al. 2023, DyGFormer, §4).

    `pooled` is what became of the event itself, the last token.
    """

    hides = ("replace",)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        features = super().forward(batch, mask, kept)
        assert features.tokens is not None
        assert features.valid is not None
        last = features.valid.sum(dim=1) - 1
        return replace(features, pooled=features.tokens[torch.arange(len(last), device=last.device), last])
