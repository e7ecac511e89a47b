"""Pictures as tokens: squares in reading order, which of them are hidden together, and grey pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from labelfree.data.draw import Draw
from labelfree.data.on_device import constant
from labelfree.modalities.image.views import YIQ


def squares(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) → (B, N, side·side·C)."""
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(count, (height // side) * (width // side), side * side * channels)


def joined(tokens: Tensor, side: int, height: int) -> Tensor:
    """(B, N, side·side·C) → (B, C, H, W), the inverse of `squares`."""
    count, places = tokens.shape[:2]
    rows = height // side
    x = tokens.reshape(count, rows, places // rows, side, side, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, height, places // rows * side)


def moments(tokens: Tensor, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the pixels of each token (B, N, ·), both (B, N, 1); with `channels`, which are last in a
    token, those of each channel for all its pixels, both (B, N, ·).
    """
    split = tokens.unflatten(2, (-1, channels))
    variance, mean = torch.var_mean(split, dim=2, keepdim=True, correction=0)
    deviation = (variance + 1e-6).sqrt()
    if channels == 1:
        return mean[..., 0], deviation[..., 0]
    return mean.expand_as(split).flatten(2), deviation.expand_as(split).flatten(2)


def block_scores(draw: Draw, across: int, ratio: float, blocks: int = 1) -> Tensor:
    """(B, N) scores that are lowest in square blocks, somewhere, each of about the same share of the tokens.

    Args:
        across: tokens in a row.
        ratio: share of the tokens that all blocks have together, where they do not overlap.
    """
    half = (ratio / blocks) ** 0.5 * across / 2
    centre = half + draw.uniform("block", blocks, 2) * (across - 2 * half)
    place = torch.arange(across, device=centre.device) + 0.5
    away = (place - centre[..., None]).abs()
    distance = torch.maximum(away[:, :, 0, :, None], away[:, :, 1, None, :]).flatten(2).amin(dim=1)
    return distance + 1e-3 * draw.uniform("mask", across**2)


def square_scores(draw: Draw, across: int) -> Tensor:
    """(B, N) scores that are alike in squares of 2 × 2 tokens (Xie et al. 2022, "SimMIM", §4.1.2)."""
    half = -(-across // 2)
    rows = draw.uniform("mask", half, half).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return rows[:, :across, :across].flatten(1)


def grey(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised colour pictures (B, 3, H, W), of `mean` and `std` (3, 1, 1), without their colours: luma thrice."""
    luma = constant(YIQ[0], x.device)[:, None, None]
    return ((x * std + mean).mul(luma).sum(dim=1, keepdim=True) - mean) / std
