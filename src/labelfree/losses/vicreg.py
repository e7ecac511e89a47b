"""Variance, invariance, covariance (Bardes et al. 2022, VICReg, §4.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import gather
from labelfree.losses.precision import full_precision


class VICRegTerms(NamedTuple):
    """The three terms, unweighted."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


@full_precision
def vicreg_terms(a: Tensor, b: Tensor, epsilon: float = 1e-4) -> VICRegTerms:
    """Terms of two views' embeddings, with statistics over the global batch.

    Args:
        a, b: (B, D) embeddings, not normalised.
        epsilon: keeps the derivative of the standard deviation finite (eq. 2).

    Returns:
        invariance: mean squared difference (eq. 5, per dimension as the authors' code has it).
        variance: how far standard deviations fall short of one (eq. 1), mean of the two views, as in the
            authors' code (eq. 6 and solo-learn sum them: half of our weight does the same there).
        covariance: squared off-diagonal covariances (eq. 3, 4), summed over the two views.
    """
    spreads = [_spread(gather(z), epsilon) for z in (a, b)]
    variance = (spreads[0][0] + spreads[1][0]) / 2
    return VICRegTerms(F.mse_loss(a, b), variance, spreads[0][1] + spreads[1][1])


def _spread(z: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Hinge on the standard deviations, and squared off-diagonal covariances by width, of (N, D) embeddings."""
    count, width = z.shape
    z = z - z.mean(dim=0)
    variances = z.square().sum(dim=0) / (count - 1)
    # ‖ZᵀZ‖ = ‖ZZᵀ‖ (Frobenius), so the smaller product will do: 8 times cheaper for 256 samples of width 2048.
    product = z @ z.T if count < width else z.T @ z
    squares = product.square().sum() / (count - 1) ** 2 - variances.square().sum()
    return F.relu(1 - (variances + epsilon).sqrt()).mean(), squares / width
