"""A temperature that may change while the training goes on."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from labelfree.objectives._teacher import cosine_between
from labelfree.settings import Settings


class TemperatureSettings(Settings):
    """Which temperature divides similarities, from the first step to the last."""

    temperature: PositiveFloat
    """divides the cosine similarities, at the start"""
    temperature_end: PositiveFloat | None = None
    """the same at the end, reached along a cosine; none: it stays the same"""


class Temperature(nn.Module):
    """`now` () is the temperature of this step, kept with the state of the training."""

    now: Tensor

    def __init__(self, settings: TemperatureSettings) -> None:
        super().__init__()
        self.start, self.end = settings.temperature, settings.temperature_end
        self.register_buffer("now", torch.tensor(self.start))

    def move(self, progress: float) -> None:
        """To where it is after this share of the training."""
        if self.end is not None:
            self.now.fill_(cosine_between(self.start, progress, self.end))
