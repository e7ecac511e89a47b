"""The divergence of a Gaussian code from the normal, beside its definition."""

from __future__ import annotations

import torch
from torch.distributions import Normal

from labelfree.losses.gaussian import gaussian_kl


def test_divergence_is_the_mean_log_ratio_of_the_densities() -> None:
    """E[log q(z) − log p(z)] by many samples of z, one code at a time (Kingma & Welling 2014, eq. 3)."""
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    found = gaussian_kl(mean, log_variance)
    for row in range(3):
        q, p = Normal(mean[row], (0.5 * log_variance[row]).exp()), Normal(0.0, 1.0)
        z = q.sample((400_000,))
        expected = (q.log_prob(z) - p.log_prob(z)).sum(dim=1).mean()
        torch.testing.assert_close(found[row], expected, rtol=0.01, atol=0.01)


def test_divergence_of_the_normal_itself_is_zero_and_grows_either_way() -> None:
    zero = torch.zeros(1, 5)
    assert gaussian_kl(zero, zero).item() == 0
    for other in (gaussian_kl(zero + 0.1, zero), gaussian_kl(zero, zero + 0.1), gaussian_kl(zero, zero - 0.1)):
        assert other.item() > 0
