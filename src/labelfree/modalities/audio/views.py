"""Augmentations of sound, batched, with parameters per sample; of log-mel frames where not said otherwise.

Legend: x (B, T, C) a batch, of log-mel frames (C bands) or of a waveform (C = 1); lengths (B,) steps that are no
padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labelfree.data.draw import Draw
from labelfree.modalities.series.views import at_steps

#: Natural logarithm of power per decibel.
DECIBEL = math.log(10) / 10


def stretch(x: Tensor, lengths: Tensor, draw: Draw, count: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """`count` steps from anywhere in each sample, at `low` … `high` times its speed; its last one beyond its end.

    Returns:
        (B, count, C) float32, and (B,) how many of the steps are inside the sample.
    """
    last = lengths - 1
    speed = draw.uniform("speed", low=low, high=high)
    speed = torch.minimum(speed, (last / max(count - 1, 1)).clamp_min(low))
    room = (last - speed * (count - 1)).clamp_min(0)
    start = draw.uniform("start") * room
    if low == high == 1.0:
        start = start.round()
    places = start[:, None] + speed[:, None] * torch.arange(count, device=x.device)
    inside = (places <= last[:, None]).sum(dim=1)
    places = torch.minimum(places, last[:, None])
    before = places.long()
    after = torch.minimum(before + 1, last[:, None])
    return torch.lerp(at_steps(x, before).float(), at_steps(x, after).float(), (places - before)[..., None]), inside


def shift_bands(x: Tensor, draw: Draw, least: float) -> Tensor:
    """A random stretch of the bands, at least the share `least` of them, spread over all: BYOL-A's resized crop, which
    would also take up to 1.5 times the bands that there are, and so leaves half of the samples or so as they are.
    """
    band = torch.arange(x.shape[2], device=x.device)
    share = draw.uniform("band share", low=least, high=1.5).clamp_max(1.0)
    first = draw.uniform("first band") * (1 - share) * (x.shape[2] - 1)
    places = first[:, None] + share[:, None] * band
    weights = (1 - (places[:, None] - band[:, None]).abs()).clamp_min_(0)  # linear interpolation as a matrix
    with torch.autocast(x.device.type, enabled=False):
        return x @ weights


def add_powers(x: Tensor, other: Tensor) -> Tensor:
    """Logarithm of the sum of two powers, of which the logarithms are given: `logaddexp`, which torch computes on a CPU
    number by number, in five times the time.
    """
    return torch.maximum(x, other) + ((x - other).abs_().neg_().exp_() + 1).log_()


def mix_mel(x: Tensor, other: Tensor, draw: Draw, most: float) -> Tensor:
    """Add the power of other recordings (B, T, C), up to the share `most` (BYOL-A, Niizumi et al. 2021, §3.1)."""
    share = (most * draw.uniform("mix"))[:, None, None].clamp(1e-6, 1 - 1e-6)
    return add_powers(x + torch.log1p(-share), other + share.log())


def mix_wave(x: Tensor, other: Tensor, draw: Draw, most: float) -> Tensor:
    """The same for waveforms, whose powers add up where they do not depend on one another."""
    share = (most * draw.uniform("mix"))[:, None, None]
    return (1 - share).sqrt() * x + share.sqrt() * other


def noise_mel(x: Tensor, draw: Draw, most: float) -> Tensor:
    """White noise of up to the share `most` of the sample's power; the power of noise is distributed exponentially."""
    level = x.logsumexp(dim=(1, 2)) - math.log(x[0].numel()) + (most * draw.uniform("noise")).clamp_min(1e-12).log()
    power = (1 - draw.uniform("noise power", *x.shape[1:])).log_().neg_().clamp_min_(1e-12)
    return add_powers(x, level[:, None, None] + power.log())


def noise_wave(x: Tensor, draw: Draw, most: float) -> Tensor:
    """The same for waveforms."""
    power = x.square().mean(dim=(1, 2)) * most * draw.uniform("noise")
    return x + power.sqrt()[:, None, None] * draw.normal("noise wave", *x.shape[1:])


def gain_mel(x: Tensor, draw: Draw, most: float) -> Tensor:
    """Louder or softer by up to `most` decibels."""
    return x + DECIBEL * draw.uniform("gain", low=-most, high=most)[:, None, None]


def gain_wave(x: Tensor, draw: Draw, most: float) -> Tensor:
    """The same for waveforms."""
    return x * (DECIBEL / 2 * draw.uniform("gain", low=-most, high=most)).exp()[:, None, None]


def blank(x: Tensor, draw: Draw, most: float, axis: int) -> Tensor:
    """Silence a stretch of time (axis 1) or of bands (axis 2) of up to the share `most` (Park et al. 2019, §2).

    For normalised values, of which 0 is the mean.
    """
    count, name = x.shape[axis], ("time", "bands")[axis - 1]
    width = most * count * draw.uniform(f"{name} blanked")
    first = draw.uniform(f"{name} blanked from") * (count - width)
    place = torch.arange(count, device=x.device)
    heard = (place < first[:, None]) | (place >= (first + width)[:, None])
    return x * heard.unsqueeze(3 - axis)
