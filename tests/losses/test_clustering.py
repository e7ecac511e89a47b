"""Spherical k-means, and shares of clusters among rows that count differently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labelfree.losses import rows
from labelfree.losses.clustering import spherical_kmeans
from labelfree.losses.distillation import sinkhorn


def test_an_iteration_takes_the_normalised_mean_of_the_nearest() -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(20, 3), dim=1)
    x[5] = 0
    start = torch.cat([F.normalize(torch.randn(3, 3), dim=1), -F.normalize(x.sum(dim=0), dim=0)[None]])
    centroids, labels = spherical_kmeans(x, start, 1)
    nearest = [max(range(4), key=lambda k, v=v: float(v @ start[k])) for v in x]
    for k in range(4):
        own = [x[i] for i in range(20) if nearest[i] == k and i != 5]
        torch.testing.assert_close(centroids[k], F.normalize(sum(own), dim=0) if own else start[k])
    assert labels[5] == -1
    assert all(labels[i] == max(range(4), key=lambda k, i=i: float(x[i] @ centroids[k])) for i in range(20) if i != 5)


def test_groups_are_found_again_whatever_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    group = torch.arange(60) % 3
    x = F.normalize(torch.eye(3, 8)[group] + 0.1 * torch.randn(60, 8), dim=1)
    centroids, labels = spherical_kmeans(x, x[:3], 5)
    assert torch.equal(labels, group)
    monkeypatch.setattr(rows, "MOST", 12)
    assert torch.equal(spherical_kmeans(x, x[:3], 5)[0], centroids)


def test_rows_without_weight_change_no_share() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 4)
    alone = sinkhorn(scores, 0.3)
    with_others = sinkhorn(torch.cat([scores, torch.randn(5, 4)]), 0.3, weight=torch.tensor([1.0] * 6 + [0.0] * 5))
    torch.testing.assert_close(with_others[:6], alone)
    twice = sinkhorn(torch.cat([scores, scores]), 0.3, weight=torch.full((12,), 0.5))
    torch.testing.assert_close(twice[:6], alone)
