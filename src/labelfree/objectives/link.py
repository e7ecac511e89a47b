"""Link reconstruction: which tokens were linked?"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import gather, places, weighted_mean
from labelfree.encoders.base import Encoder
from labelfree.losses.masked import take
from labelfree.modalities.base import Links, Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives.base import Objective, Step
from labelfree.settings import Settings, Widths


class LinkSettings(Settings):
    """Settings of link reconstruction."""

    hidden: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of the links that the encoder does not see and must find"""
    projector: Widths = (128, 128)
    """widths of the layers between tokens and the vectors whose products score pairs"""


class Link(Objective):
    """Products of two tokens' vectors say whether they were linked (Kipf & Welling 2016, "Variational Graph
    Auto-Encoders", §2, without the variational part). Links that are to be found are hidden from the encoder (Li et
    al. 2023, "What's Behind the Mask: Understanding Masked Graph Modeling", MaskGAE, §4); each is compared with a pair
    that is not linked: two nodes of the same graph or, in one large graph, an end of the link and any node.
    """

    name = "link"
    settings_class = LinkSettings
    needs = frozenset({Need.TOKENS, Need.LINKS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}

    def __init__(self, encoder: Encoder, modality: Modality, settings: LinkSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector, norm=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Batch, draw: Draw) -> Step:
        links = self.modality.links(self.modality.view(batch, draw, "none"), draw, self.settings.hidden)
        features = self.encoder(links.view.with_(draw=draw))
        z = self.projector(features.tokens).float()
        linked = self._score(take(z, links.pairs[..., 0]), take(z, links.pairs[..., 1]))
        scores = torch.cat([linked, self._apart(z, links, draw)], dim=1)
        truth = torch.cat([torch.ones_like(links.hidden), torch.zeros_like(links.apart)], dim=1).to(scores.dtype)
        weights = torch.cat([links.hidden, links.apart], dim=1)
        loss = weighted_mean(F.binary_cross_entropy_with_logits(scores, truth, reduction="none"), weights)
        right = ((scores.detach() > 0) == truth.bool()).float()
        return Step(loss, features.pooled.detach(), {"right": (right * weights).sum() / weights.sum().clamp_min(1)})

    def _apart(self, z: Tensor, links: Links, draw: Draw) -> Tensor:
        """(B, P) scores of pairs that are not linked."""
        if links.others is not None:
            return self._score(take(z, links.others[..., 0]), take(z, links.others[..., 1]))
        # Samples are drawn evenly from the nodes, or links, of one graph, so their roots are nodes anywhere in it.
        # Pairs within a piece would ask what tells neighbours apart, not what they share.
        anywhere, count = gather(z[:, 0]), links.pairs.shape[1]
        shift = 1 + draw.integers("elsewhere", max(1, len(anywhere) - 1), count)
        end = draw.integers("end", 2, count, 1)
        start = links.pairs.gather(2, end).squeeze(2)
        return self._score(take(z, start), anywhere[(places(z)[:, None] + shift) % len(anywhere)])

    def _score(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, P, D), (B, P, D) → (B, P)."""
        return (a * b).sum(dim=2) / math.sqrt(a.shape[2]) + self.bias
