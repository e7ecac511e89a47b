"""CLIP: the sides of a row find each other among those of all other rows."""

from __future__ import annotations

from torch import Tensor

from labelfree.losses.pairs import clip_loss
from labelfree.objectives._pairs import Sides, SidesSettings


class CLIPSettings(SidesSettings):
    """Settings of CLIP."""


class CLIP(Sides):
    """Contrastive language-image pretraining (Radford et al. 2021, §2.3), for sides of any kind."""

    name = "clip"
    settings_class = CLIPSettings

    def contrast(self, a: Tensor, b: Tensor, scale: Tensor, there: Tensor) -> Tensor:
        return clip_loss(a, b, scale, there)
