"""What the objectives on two or more sides of a row share."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import combinations
from typing import Literal, Self

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Step
from labelfree.settings import Settings


class SidesSettings(Settings):
    """Settings that objectives on sides share."""

    views: Literal["light", "contrast", "none"] = "light"
    """strength of the augmentation of each side"""
    frozen: tuple[str, ...] = ()
    """sides whose tower stays as it is, by commas; only its projection learns (the towers of runs, usually)"""
    scale: PositiveFloat = 1 / 0.07
    """scale of the logits (1 / temperature) at the start; it is learnt, and stays at most 100"""


class Sides(Objective):
    """Brings the vectors of a row's sides together, for every two sides; `contrast` says how.

    The encoder's `pooled` (B, S·W) holds a unit vector for each of S sides, zeros where one is missing.
    """

    needs = frozenset({Need.PAIR})
    defaults = {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.2, "beta2": 0.98, "warmup": 0.1}

    def __init__(self, encoder: Encoder, modality: Modality, settings: SidesSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.log_scale = nn.Parameter(torch.tensor([float(self.settings.scale)]).log())
        towers = getattr(encoder, "towers", {})
        for side in self.settings.frozen:
            if side not in towers:
                known = ", ".join(towers) or "none"
                raise Refusal(f"There is no tower '{side}' to freeze: there are {known}.", "Name a side in frozen.")
            towers[side].requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Frozen towers keep their running statistics."""
        super().train(mode)
        for side in self.settings.frozen:
            self.encoder.towers[side].eval()  # type: ignore[index, union-attr]
        return self

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, self.settings.views)
        pooled = self.encoder(view).pooled
        vectors, there = pooled.unflatten(1, (view.data.shape[1], -1)), view.data.bool()
        scale = self.log_scale.exp().squeeze(0)
        losses = [
            self.contrast(vectors[:, i], vectors[:, j], scale, there[:, i] & there[:, j])
            for i, j in combinations(range(there.shape[1]), 2)
        ]
        return Step(torch.stack(losses).mean(), pooled.detach(), {"scale": scale.detach()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        # the parameter is clipped, not its use: beyond a clamp no gradient would bring it back
        self.log_scale.clamp_(max=math.log(100))

    @abstractmethod
    def contrast(self, a: Tensor, b: Tensor, scale: Tensor, there: Tensor) -> Tensor:
        """The loss of two sides (B, W), for the rows (B,) that have both."""
