"""Augmentations of series, batched, with parameters per sample. Padding and missing values are NaN and stay so.

Legend: x (B, T, C) a batch; lengths (B,) steps that are no padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labelfree.data.draw import Draw


def at_steps(x: Tensor, steps: Tensor) -> Tensor:
    """(B, T, C), (B, K) → (B, K, C): steps by number, all of them in the series."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    # Whole rows of one table: three times as fast on a CPU as indexing by pairs.
    return x.flatten(0, 1).index_select(0, (rows * x.shape[1] + steps).flatten()).view(*steps.shape, -1)


def take_steps(x: Tensor, steps: Tensor) -> Tensor:
    """(B, T, C), (B, K) → (B, K, C): steps by number; NaN where the number is not in the series."""
    inside = (steps >= 0) & (steps < x.shape[1])
    return torch.where(inside[..., None], at_steps(x, steps.clamp(0, x.shape[1] - 1)), torch.nan)


def interpolate(x: Tensor, places: Tensor) -> Tensor:
    """(B, T, C) at fractional steps (B, K), linearly; beside a missing value the nearer of the two counts."""
    low = places.floor()
    weight = (places - low)[..., None]
    before, after = take_steps(x, low.long()), take_steps(x, (low.long() + 1).clamp(max=x.shape[1] - 1))
    mixed = before * (1 - weight) + after * weight
    return torch.where(mixed.isnan(), torch.where(weight < 0.5, before, after), mixed)


def crop(x: Tensor, lengths: Tensor, draw: Draw, least: float, most: float = 1.0) -> Tensor:
    """A stretch of the share `least` to `most` of each series, resampled to the series' length."""
    reach = (lengths - 1).float()
    span = reach * draw.uniform("crop share", low=least, high=most)
    start = (reach - span) * draw.uniform("crop start")
    step = torch.arange(x.shape[1], device=x.device)
    places = start[:, None] + step * (span / reach.clamp_min(1))[:, None]
    return interpolate(x, torch.where(step < lengths[:, None], places, step))


def jitter(x: Tensor, draw: Draw, strength: float) -> Tensor:
    """Gaussian noise on every value."""
    return x + strength * draw.normal("jitter", *x.shape[1:])


def scale(x: Tensor, draw: Draw, strength: float) -> Tensor:
    """Each channel of each sample times a number near 1."""
    return x * (1 + strength * draw.normal("scale", 1, x.shape[2]))


def permute(x: Tensor, lengths: Tensor, draw: Draw, most: int) -> Tensor:
    """Cut each series at random places into 1 … `most` segments and shuffle them (TS-TCC, Eldele et al. 2021, §3.1)."""
    cuts = draw.uniform("cuts", most - 1) * lengths[:, None]
    used = torch.arange(most - 1, device=x.device) < draw.integers("segments", most)[:, None]
    step = torch.arange(x.shape[1], device=x.device)
    segment = ((step[:, None] >= cuts[:, None, :]) & used[:, None, :]).sum(dim=2)
    rank = draw.permutation("shuffle", most).gather(1, segment)
    rank = torch.where(step < lengths[:, None], rank, most)
    return take_steps(x, rank.argsort(dim=1, stable=True))


def blank(x: Tensor, draw: Draw, share: float) -> Tensor:
    """A share of the steps as if they were missing."""
    return x.masked_fill(draw.bernoulli("blank", share, x.shape[1], 1), float("nan"))


def segments(x: Tensor, lengths: Tensor, orders: Tensor) -> Tensor:
    """Put K equal segments of each series in the order `orders` (B, K); steps that do not divide stay at the end."""
    size = (lengths // orders.shape[1])[:, None]
    step = torch.arange(x.shape[1], device=x.device)[None]
    place = (step // size.clamp_min(1)).clamp(max=orders.shape[1] - 1)
    source = orders.gather(1, place) * size + step % size.clamp_min(1)
    return take_steps(x, torch.where(step < size * orders.shape[1], source, step))


def reverse(x: Tensor, lengths: Tensor, which: Tensor) -> Tensor:
    """Run the series where `which` (B,) is 1 backwards."""
    step = torch.arange(x.shape[1], device=x.device)
    backwards = torch.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return take_steps(x, torch.where(which[:, None] == 1, backwards, step))


@dataclass(frozen=True)
class Overlap:
    """Two crops: where each begins in every sample, (B,) tokens, and how many tokens it has; and those they share."""

    crops: tuple[tuple[Tensor, int], tuple[Tensor, int]]
    shared: tuple[slice, slice]


def overlap(draw: Draw, own: Tensor, usual: int) -> Overlap:
    """Random crops that overlap (Yue et al. 2022, §3.2): where they begin and end is drawn for the whole batch.

    Each sample shifts both by its own offset. The first crop ends with the shared tokens, the second begins with
    them. Lengths are counted in the training data's, so that batch-mates and processes change nothing.

    Args:
        own: (B,) tokens of each sample.
        usual: tokens of a usual sample, at least 2.
    """
    shared = Draw(torch.tensor([draw.batch]), draw.batch)

    def pick(name: str, high: int) -> int:
        return int(shared.integers(name, high))

    count = 2 + pick("length", usual - 1)
    left = pick("left", usual - count + 1)
    right = left + count
    first = pick("first", left + 1)
    last = right + pick("last", usual - right + 1)
    room = (own - last + first + 1).clamp_min(1)
    offset = (draw.uniform("offset") * room).long() - first
    crops = ((offset + first, right - first), (offset + left, last - left))
    return Overlap(crops, (slice(left - first, right - first), slice(0, count)))
