"""Self-distillation: a student learns a teacher's soft assignment to prototypes, which must not become all the same.

Legend: B samples of this process, R processes, K prototypes, D width, τ temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import all_sum, gather, places
from labelfree.losses.precision import full_precision


def entropy(p: Tensor) -> Tensor:
    """(..., K) probabilities → (...), in nats."""
    return -(p * p.clamp_min(1e-30).log()).sum(dim=-1)


@torch.no_grad()
@full_precision
def distinct(labels: Tensor) -> Tensor:
    """How many of B soft labels (B, K) differ, from 1 where all are alike to the smaller of B and K: the exponential of
    what a label says of its sample, the entropy of their mean less their mean entropy.
    """
    return (entropy(labels.mean(dim=0)) - entropy(labels).mean()).exp()


@full_precision
def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """(..., K) probabilities, (..., K) logits → (...): −Σ target · log softmax(logits)."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def swapped(labels: Tensor, views: Tensor, crops: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of one view's label with every other view of the sample (Caron et al. 2021, DINO, eq. 3).

    A cross-entropy is linear in its label: a crop, which is asked for both, is asked once for their mean.

    Args:
        labels: (2B, K) probabilities, of the first views and of the second.
        views: (2B, K) logits, in the same order.
        crops: (L·B, K) logits of small crops, crop by crop.
    """
    first, second = labels.chunk(2)
    agreed = soft_cross_entropy(torch.cat([second, first]), views).mean()
    if crops is None:
        return agreed
    count = len(crops) // len(first)
    small = soft_cross_entropy((first + second) / 2, crops.unflatten(0, (count, -1))).mean()
    return (agreed + count * small) / (1 + count)


@torch.no_grad()
@full_precision
def centred(logits: Tensor, centre: Tensor, temperature: float | Tensor) -> Tensor:
    """(..., K) assignments: softmax of centred, sharpened logits (Caron et al. 2021, DINO, §3.1)."""
    return torch.softmax((logits - centre) / temperature, dim=-1)


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, temperature: float | Tensor, iterations: int = 3, weight: Tensor | None = None) -> Tensor:
    """(B, K) assignments of the global batch, in which all prototypes get equal shares (Caron et al. 2020, SwAV, §3.1).

    Sinkhorn and Knopp's alternation on exp(scores / τ): columns to equal sums, rows to one.

    Args:
        scores: (B, K) of this process's samples; the columns' sums are those over all processes.
        weight: (B,) how much each row counts in the columns' sums, 1 where it is None: 0 for one that is not there.
    """
    logits = scores / temperature
    logits = logits - gather(logits.amax().view(1)).amax()  # any constant cancels; this one keeps exp in range
    assigned = logits.exp()
    share = scores.new_ones(len(scores)) if weight is None else weight.to(assigned.dtype)
    for _ in range(iterations):
        assigned = assigned / all_sum(share @ assigned).clamp_min(1e-30)
        assigned = assigned / assigned.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return assigned


@torch.no_grad()
@full_precision
def mean_over_batch(logits: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B, K) → (K,): the mean over the samples of all processes, weighted by (B,); zeros where nothing weighs."""
    share = logits.new_ones(len(logits)) if weight is None else weight.to(logits.dtype)
    return all_sum(share @ logits) / all_sum(share.sum()).clamp_min(1e-30)


@full_precision
def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    """−log of each sample's distance to its nearest neighbour, on the sphere: spreads features evenly (Sablayrolles et
    al. 2019, §3.2, in DINOv2's form, Oquab et al. 2023, §4).

    Args:
        x: (B, D); neighbours are looked for in the global batch.

    Returns:
        This process's part: its mean over processes is that of the global batch.
    """
    x = F.normalize(x, dim=1)
    everyone = gather(x)
    with torch.no_grad():
        nearest = (x @ everyone.T).scatter_(1, places(x)[:, None], -2.0).argmax(dim=1)
    return -(F.pairwise_distance(x, everyone[nearest], eps=eps) + eps).log().mean()
