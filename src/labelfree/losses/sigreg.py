"""Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, LeJEPA, §4)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from labelfree.distributed import all_sum, world_size
from labelfree.losses.precision import full_precision

#: Points at which characteristic functions are compared, with their weights in the trapezoidal rule: 17 in [−5, 5]
#: (§4.2). Both functions' differences are even, so that one half will do.
_STEP = 0.625
_POINTS = tuple(_STEP * n for n in range(9))
_WEIGHTS = tuple(_STEP if n in (0, 8) else 2 * _STEP for n in range(9))


@lru_cache
def _rule(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(T, 1, 1) the normal distribution's characteristic function at the points, and the weights of differences."""
    point, share = (torch.tensor(x, device=device, dtype=dtype)[:, None, None] for x in (_POINTS, _WEIGHTS))
    normal = (-point.square() / 2).exp()
    return normal, share * normal


@full_precision
def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """How far embeddings are from an isotropic standard normal: Epps and Pulley's test of their shadows on random
    directions, N ∫ |φ(t) − exp(−t²/2)|² exp(−t²/2) dt, φ being the characteristic function of the N samples.

    Args:
        z: (V, B, D) embeddings of V views; each view is tested by itself, with the samples of all processes.
        directions: (D, M), of unit length, the same on every process.

    Returns:
        Scalar: the mean over views and directions.
    """
    count = z.shape[1] * world_size()
    shadows = z @ directions
    turns = [point * shadows for point in _POINTS]
    parts = torch.stack([torch.stack([turn.cos().sum(dim=1), turn.sin().sum(dim=1)]) for turn in turns])
    real, imaginary = (all_sum(parts) / count).unbind(dim=1)  # (T, V, M)
    normal, weight = _rule(z.device, z.dtype)
    return count * (weight * ((real - normal).square() + imaginary.square())).sum(dim=0).mean()
