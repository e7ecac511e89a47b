"""Losses on Gaussian codes."""

from __future__ import annotations

from torch import Tensor

from labelfree.losses.precision import full_precision


@full_precision
def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B, D), (B, D) → (B,): KL divergence from N(0, 1) of a diagonal Gaussian (Kingma & Welling 2014, appendix B)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
