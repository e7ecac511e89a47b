"""Deep Graph Infomax: which tokens belong to the sample, and which to one that makes no sense?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder, mean_of
from labelfree.losses.precision import full_precision
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import valid_tokens
from labelfree.objectives._views import halves
from labelfree.objectives.base import Objective, Step
from labelfree.settings import Settings


class DGISettings(Settings):
    """Deep Graph Infomax has no settings."""


class DGI(Objective):
    """Tokens are scored by their sample's summary: high for its own, low for those of a corrupted sample (Veličković et
    al. 2019, "Deep Graph Infomax", §3.3). Each sample has a summary; that of a node is its neighbourhood's, which §4.2
    does where a graph is too large to be seen at once.
    """

    name = "dgi"
    settings_class = DGISettings
    needs = frozenset({Need.TOKENS, Need.CORRUPTION})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup": 0.0}

    def __init__(self, encoder: Encoder, modality: Modality, settings: DGISettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.score = nn.Linear(encoder.dim, encoder.dim, bias=False)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, "none")
        both = Batch.cat([view.with_(draw=draw), self.modality.corrupt(view, draw).with_(draw=draw)])
        features = self.encoder(both)
        assert features.tokens is not None
        own, others = halves(features.tokens)
        valid, _ = halves(valid_tokens(features))
        # Every token is in one summary: a mean without bounds, of which the sigmoid is taken (§4.2).
        summary = mean_of(own, valid).sigmoid()
        direction = self.score(summary)[..., None]
        loss = (F.softplus(-_dot(own, direction)) + F.softplus(_dot(others, direction))) / 2
        found = _right(own, others, direction)
        return Step(
            weighted_mean(loss, valid),
            halves(features.pooled.detach())[0],
            {"told_apart": (found * valid).sum() / valid.sum()},
        )


@full_precision
def _dot(tokens: Tensor, direction: Tensor) -> Tensor:
    """(B, N, D), (B, D, 1) → (B, N)."""
    return torch.bmm(tokens, direction)[..., 0]


@torch.no_grad()
def _right(own: Tensor, others: Tensor, direction: Tensor) -> Tensor:
    """(B, N) share of a token and its corrupted twin that are on the right side."""
    return ((_dot(own, direction) > 0).float() + (_dot(others, direction) < 0).float()) / 2
