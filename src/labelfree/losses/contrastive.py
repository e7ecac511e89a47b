"""Contrastive losses: tell the positive from all others.

Legend: B samples of this process, R processes, D width, q query, k key, τ temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import gather, rank
from labelfree.losses.precision import full_precision


@full_precision
def nt_xent(a: Tensor, b: Tensor, temperature: float, group: Tensor | None = None) -> Tensor:
    """Normalised-temperature cross-entropy of two views (Chen et al. 2020, SimCLR, §2.1, eq. 1).

    Each of the 2·R·B projections looks for its other view among all but itself; negatives come from every process,
    and their gradient goes back there.

    Args:
        a, b: (B, D) projections of the first and second views, in the same order; they are normalised here.
        temperature: τ.
        group: (B,) int64; samples with the same group (not negative) are positives too, as several pictures of one
            patient in MICLe (Azizi et al. 2021, §3.2). A query with several positives takes the mean of their terms.

    Returns:
        This process's part: its mean over processes is the loss of the global batch.
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    q, k = torch.cat([a, b]), torch.cat([gather(a), gather(b)])
    count = len(k) // 2
    here = torch.arange(len(a), device=a.device) + rank() * len(a)
    itself, other = torch.cat([here, here + count]), torch.cat([here + count, here])
    # In place, so that the (2B, 2RB) matrix exists once.
    logits = (q @ k.T).div_(temperature).scatter_(1, itself[:, None], -torch.inf)
    if group is None:
        return F.cross_entropy(logits, other)
    label = gather(group).repeat(2)
    positive = (group.repeat(2)[:, None] == label) & (label >= 0)
    positive.scatter_(1, other[:, None], True).scatter_(1, itself[:, None], False)
    log_p = F.log_softmax(logits, dim=1).masked_fill(~positive, 0)
    return -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()


@full_precision
def info_nce(q: Tensor, positive: Tensor, negatives: Tensor, excluded: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE of many queries against one shared pool (van den Oord et al. 2018, CPC, §2.3, eq. 4).

    Args:
        q: (B, M, D) predictions.
        positive: (B, M, D) what each ought to find.
        negatives: (P, D) the pool.
        excluded: (B, M, P) or broadcastable bool, true where an entry of the pool must not count (padding, or the
            positive itself).

    Returns:
        (B, M) the loss of each query. Nothing is normalised here: CPC scores by plain dot products.
    """
    match = (q * positive).sum(dim=2, keepdim=True) / temperature
    others = (q @ negatives.T).div_(temperature).masked_fill_(excluded, -torch.inf)
    return torch.logsumexp(torch.cat([match, others], dim=2), dim=2) - match.squeeze(2)
