"""Spherical k-means (Dhillon & Modha 2001), as DeepCluster v2 has it (Caron et al. 2020, SwAV, appendix D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import gather
from labelfree.losses.precision import full_precision
from labelfree.losses.rows import by_rows


@torch.no_grad()
@full_precision
def spherical_kmeans(x: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Centroids of unit length after some iterations, and the nearest to each sample; deterministic.

    Args:
        x: (N, D) unit vectors, the same on every process; zero where a sample is unknown.
        centroids: (K, D) unit vectors to start from; one that loses all its samples stays where it is.

    Returns:
        (K, D) and (N,) int64, -1 where a sample is unknown.
    """
    known = x.any(dim=1)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, _nearest(x, centroids), x)
        centroids = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centroids)
    # On a GPU sums may differ in their last digit from process to process: the first one's count.
    centroids = gather(centroids)[: len(centroids)]
    return centroids, torch.where(known, _nearest(x, centroids), -1)


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return by_rows(lambda part: (part @ centroids.T).argmax(dim=1), len(centroids), x)
