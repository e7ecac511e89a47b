"""VICReg's terms against the formulas of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelfree.losses.vicreg import vicreg_terms


def slow_terms(a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    count, width = a.shape
    variance = covariance = torch.zeros((), dtype=a.dtype)
    for z in (a, b):
        deviations = torch.sqrt(z.var(dim=0) + epsilon)
        variance = variance + sum(torch.clamp(1 - s, min=0) for s in deviations) / width / 2
        matrix = sum(torch.outer(row - z.mean(0), row - z.mean(0)) for row in z) / (count - 1)
        covariance = covariance + sum(matrix[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width
    return ((a - b) ** 2).mean(), variance, covariance


@pytest.mark.parametrize("shape", [(5, 11), (11, 5)], ids=["fewer samples than dimensions", "more"])
def test_terms_equal_the_paper_in_value_and_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    inputs = [(0.8 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    for fast, slow in zip(vicreg_terms(*inputs), slow_terms(*inputs, 1e-4), strict=True):
        torch.testing.assert_close(fast, slow)
        got = torch.autograd.grad(fast, inputs, retain_graph=True)
        expected = torch.autograd.grad(slow, inputs, retain_graph=True)
        torch.testing.assert_close(got, expected)


def test_collapse_costs_variance_and_repetition_costs_covariance() -> None:
    torch.manual_seed(0)
    point = torch.ones(16, 4)
    assert vicreg_terms(point, point).variance > 0.9
    repeated = torch.randn(64, 1).expand(64, 4)
    spread = torch.linalg.qr(torch.randn(64, 4)).Q * 8
    assert vicreg_terms(repeated, repeated).covariance > 20 * vicreg_terms(spread, spread).covariance
