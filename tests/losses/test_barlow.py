"""Barlow Twins' loss against the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelfree.losses.barlow import redundancy


def slow_redundancy(a: Tensor, b: Tensor, weight: float) -> Tensor:
    a, b = ((z - z.mean(dim=0)) / torch.sqrt(z.var(dim=0, unbiased=False) + 1e-5) for z in (a, b))
    total = torch.zeros((), dtype=a.dtype)
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = (a[:, i] * b[:, j]).mean()
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


@pytest.mark.parametrize("shape", [(4, 11), (9, 5)], ids=["fewer samples than dimensions", "more"])
def test_redundancy_equals_the_paper_in_value_and_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    fast, slow = redundancy(*inputs, 0.3), slow_redundancy(*inputs, 0.3)
    torch.testing.assert_close(fast, slow)
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(got, expected)


def test_equal_views_cost_only_what_features_repeat() -> None:
    torch.manual_seed(0)
    spread = torch.linalg.qr(torch.randn(64, 5) - torch.randn(64, 5).mean(dim=0)).Q
    spread = torch.linalg.qr(spread - spread.mean(dim=0)).Q
    assert redundancy(spread, spread, 1.0, epsilon=0) < 1e-6
    repeated = spread[:, :1].expand(64, 5)
    assert redundancy(repeated, repeated, 1.0, epsilon=0) == pytest.approx(20, rel=1e-4)
