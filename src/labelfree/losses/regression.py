"""Losses that pull one vector to another, sample by sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from labelfree.losses.precision import full_precision


@full_precision
def cosine_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the normalised vectors, 2 − 2 cos (Grill et al. 2020, BYOL, §3.1, eq. 2); 0 to 4.

    Args:
        prediction, target: (B, D); the caller stops the target's gradient.
    """
    return 2 - 2 * F.cosine_similarity(prediction, target, dim=1).mean()


@full_precision
def alignment(a: Tensor, b: Tensor) -> Tensor:
    """How far apart two views of a sample lie on the sphere (Wang & Isola 2020, §4.1.1), without gradient: 0 to 4."""
    return cosine_regression(a.detach(), b.detach())


@full_precision
def token_distance(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """(B, K, D), (B, K, D) → (B, K): mean smooth L1 error with `beta`, or the mean squared error where that is 0.

    Smooth L1 is squared below β and straight beyond (Baevski et al. 2022, data2vec, §3.4).
    """
    if beta:
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).mean(dim=-1)
    return F.mse_loss(prediction, target, reduction="none").mean(dim=-1)
