"""SigLIP: do these two sides belong together? Asked of every two by themselves."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from labelfree.encoders.base import Encoder
from labelfree.losses.pairs import siglip_loss
from labelfree.modalities.base import Modality
from labelfree.objectives._pairs import Sides, SidesSettings


class SigLIPSettings(SidesSettings):
    """Settings of SigLIP."""

    scale: PositiveFloat = 10.0
    """scale of the logits (1 / temperature) at the start; it is learnt, and stays at most 100"""
    bias: float = -10.0
    """bias of the logits at the start; it is learnt"""


class SigLIP(Sides):
    """Sigmoid loss for language-image pretraining (Zhai et al. 2023, §3.2), for sides of any kind."""

    name = "siglip"
    settings_class = SigLIPSettings

    def __init__(self, encoder: Encoder, modality: Modality, settings: SigLIPSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.bias = nn.Parameter(torch.tensor([self.settings.bias]))

    def contrast(self, a: Tensor, b: Tensor, scale: Tensor, there: Tensor) -> Tensor:
        return siglip_loss(a, b, scale, self.bias.squeeze(0), there)
