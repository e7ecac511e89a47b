"""Contrastive losses against references written term by term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from labelfree.losses.contrastive import info_nce, nt_xent


def slow_nt_xent(a: Tensor, b: Tensor, temperature: float, group: list[int] | None = None) -> Tensor:
    z = [v / v.norm() for v in (*a, *b)]
    count = len(a)
    total = torch.zeros(())
    for i in range(2 * count):
        others = [k for k in range(2 * count) if k != i]
        denominator = sum(torch.exp(z[i] @ z[k] / temperature) for k in others)
        positives = [(i + count) % (2 * count)]
        if group is not None and group[i % count] >= 0:
            positives = [k for k in others if group[k % count] == group[i % count]]
        terms = [-torch.log(torch.exp(z[i] @ z[k] / temperature) / denominator) for k in positives]
        total = total + sum(terms) / len(terms)
    return total / (2 * count)


@pytest.mark.parametrize("group", [None, [0, 1, 0, -1, -1, 1, 0]])
def test_nt_xent_equals_its_definition_in_value_and_gradient(group: list[int] | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    fast = nt_xent(*inputs, 0.3, None if group is None else torch.tensor(group))
    slow = slow_nt_xent(*inputs, 0.3, group)
    torch.testing.assert_close(fast, slow)
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(got, expected)


def test_nt_xent_leaves_a_sample_out_of_its_own_negatives() -> None:
    same = torch.ones(1, 4)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(0, abs=1e-6)
    apart = torch.eye(4)
    # Each query has its positive at cosine 1 and six others at 0.
    assert nt_xent(apart, apart, 1.0).item() == pytest.approx(math.log(math.e + 6) - 1, abs=1e-6)


def test_nt_xent_keeps_its_digits_under_autocast() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nt_xent(a, b, 0.05)
    torch.testing.assert_close(mixed, nt_xent(a, b, 0.05), rtol=0, atol=0)


def test_info_nce_equals_its_definition_and_ignores_what_is_excluded() -> None:
    torch.manual_seed(0)
    q, positive = torch.randn(2, 3, 4, 6)
    negatives = torch.randn(9, 6)
    excluded = torch.rand(3, 4, 9) < 0.4
    losses = info_nce(q, positive, negatives, excluded, 0.7)
    for b in range(3):
        for m in range(4):
            match = torch.exp(q[b, m] @ positive[b, m] / 0.7)
            rest = sum(torch.exp(q[b, m] @ negatives[p] / 0.7) for p in range(9) if not excluded[b, m, p])
            torch.testing.assert_close(losses[b, m], -torch.log(match / (match + rest)))
    alone = info_nce(q, positive, negatives, torch.ones(1, 1, 9, dtype=torch.bool))
    torch.testing.assert_close(alone, torch.zeros(3, 4))
