"""Self-distillation's parts against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labelfree.losses.distillation import (
    centred,
    distinct,
    koleo,
    mean_over_batch,
    sinkhorn,
    soft_cross_entropy,
    swapped,
)
from labelfree.objectives._prototypes import PrototypeHead


def test_soft_cross_entropy_is_the_sum_over_labels() -> None:
    torch.manual_seed(0)
    target, logits = torch.rand(5, 7).softmax(dim=1), torch.randn(5, 7)
    plain = [-sum(float(t) * float(v - torch.logsumexp(row, 0)) for t, v in zip(label, row, strict=True))
             for label, row in zip(target, logits, strict=True)]  # fmt: skip
    np.testing.assert_allclose(soft_cross_entropy(target, logits), plain, rtol=1e-5)


@pytest.mark.parametrize("crops", [0, 3])
def test_every_view_is_asked_for_the_label_of_every_other_view(crops: int) -> None:
    torch.manual_seed(0)
    labels, views = torch.randn(8, 5).softmax(dim=1), torch.randn(8, 5, requires_grad=True)
    small = torch.randn(crops * 4, 5) if crops else None
    every = [*views.chunk(2), *(() if small is None else small.chunk(crops))]
    terms = [
        soft_cross_entropy(label, view).mean()
        for one, label in enumerate(labels.chunk(2))
        for other, view in enumerate(every)
        if one != other
    ]
    torch.testing.assert_close(swapped(labels, views, small), torch.stack(terms).mean())


def test_centring_takes_off_what_all_have_in_common() -> None:
    logits = torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    label = centred(logits, torch.tensor([3.0, 1.5]), 0.5)
    plain = np.exp([[0.0, -1.0], [0.0, 1.0]])
    np.testing.assert_allclose(label, plain / plain.sum(axis=1, keepdims=True), rtol=1e-5)


def test_sinkhorn_gives_every_prototype_an_equal_share() -> None:
    torch.manual_seed(0)
    scores = torch.randn(64, 8) + torch.tensor([5.0, *[0.0] * 7])  # all prefer the first
    assigned = sinkhorn(scores, 0.5, iterations=100)
    np.testing.assert_allclose(assigned.sum(dim=1), np.ones(64), rtol=1e-5)
    np.testing.assert_allclose(assigned.sum(dim=0), np.full(8, 8.0), rtol=1e-3)


def test_sinkhorn_is_the_paper_s_alternation() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 3)
    q = np.exp(scores.double().numpy() / 0.3).T  # (K, B), as in SwAV's listing
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True)
        q /= 3
        q /= q.sum(axis=0, keepdims=True)
        q /= 6
    np.testing.assert_allclose(sinkhorn(scores, 0.3), (q * 6).T, rtol=1e-5)


def test_sinkhorn_stays_finite_at_low_temperatures() -> None:
    assigned = sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0], [0.9, 1.0]]), 0.01)
    assert assigned.isfinite().all()


def test_koleo_is_the_mean_negative_log_distance_to_the_nearest() -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 4, requires_grad=True)
    points = torch.nn.functional.normalize(x.detach(), dim=1).double().numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 10 * np.eye(10)
    loss = koleo(x)
    assert float(loss.detach()) == pytest.approx(float(-np.log(distance.min(axis=1)).mean()), rel=1e-4)
    loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_two_equal_samples_do_not_blow_up() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    koleo(x).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_mean_over_one_process_is_the_batch_s() -> None:
    x = torch.randn(5, 3)
    torch.testing.assert_close(mean_over_batch(x), x.mean(dim=0))
    weight = torch.tensor([1.0, 0, 0, 1, 2])
    torch.testing.assert_close(mean_over_batch(x, weight), (x[0] + x[3] + 2 * x[4]) / 4)
    assert not mean_over_batch(x, torch.zeros(5)).any()


def test_cosines_with_prototypes_keep_their_digits_under_autocast() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, (8, 4), 50)
    x = torch.randn(7, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        place = F.normalize(head.layers(x).float(), dim=1)
        mixed = head(x)
    exact = place @ F.normalize(head.prototypes, dim=1).T
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-6)


def test_prototypes_learn_only_when_they_are_let() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, (8, 4), 5)
    cosines = head(torch.randn(7, 6), 0.0)
    assert cosines.abs().max() <= 1.0 + 1e-5
    cosines.square().sum().backward()
    assert head.prototypes.grad is None or not head.prototypes.grad.any()
    head(torch.randn(7, 6), 1.0).square().sum().backward()
    assert head.prototypes.grad is not None
    assert head.prototypes.grad.any()


def test_labels_that_differ_are_counted() -> None:
    one, apart = torch.zeros(6, 8), torch.eye(8)[:6]
    one[:, 3] = 1
    even = torch.full((6, 8), 1 / 8)
    assert [float(distinct(labels)) for labels in (one, even, apart)] == pytest.approx([1, 1, 6], abs=1e-4)
    assert float(distinct(torch.cat([apart, apart]))) == pytest.approx(6, abs=1e-4)
