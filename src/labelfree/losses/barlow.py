"""Redundancy reduction (Zbontar et al. 2021, Barlow Twins, §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from labelfree.distributed import gather
from labelfree.losses.precision import full_precision


@full_precision
def redundancy(a: Tensor, b: Tensor, weight: float, epsilon: float = 1e-5) -> Tensor:
    """Σ (1 − Cᵢᵢ)² + λ Σ Cᵢⱼ² (eq. 1), where C are the correlations of two views' features over the global batch.

    Args:
        a, b: (B, D) embeddings, not normalised.
        weight: λ.
        epsilon: added to variances.
    """
    a, b = (_standardised(gather(z), epsilon) for z in (a, b))
    count, width = a.shape
    own = (a * b).sum(dim=0) / count
    # ‖AᵀB‖² = Σ (AAᵀ ∘ BBᵀ), so the smaller products will do: cheaper for 256 samples of width 2048.
    squares = ((a @ a.T) * (b @ b.T)).sum() if 2 * count < width else (a.T @ b).square().sum()
    return (1 - own).square().sum() + weight * (squares / count**2 - own.square().sum())


def _standardised(z: Tensor, epsilon: float) -> Tensor:
    """Features of mean zero and variance one over the batch, as batch normalisation gives them."""
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * (variance + epsilon).rsqrt()
