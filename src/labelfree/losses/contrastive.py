"""Contrastive losses: tell the positive from all others.

Legend: B samples of this process, R processes, D width, q query, k key, τ temperature. Similarities of very many
samples are made for some queries at a time, see `by_rows`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import gather, places
from labelfree.losses.precision import full_precision
from labelfree.losses.rows import by_rows

#: What stands for no similarity where all may be excluded: finite, so that no NaN comes of it.
NEVER = -1e4


@full_precision
def nt_xent(
    a: Tensor, b: Tensor, temperature: float | Tensor, group: Tensor | None = None, decoupled: bool = False
) -> Tensor:
    """Normalised-temperature cross-entropy of two views (Chen et al. 2020, SimCLR, §2.1, eq. 1).

    Each of the 2·R·B projections looks for its other view among all but itself; negatives come from every process,
    and their gradient goes back there.

    Args:
        a, b: (B, D) projections of the first and second views, in the same order; they are normalised here.
        temperature: τ.
        group: (B,) int64; samples with the same group (not negative) are positives too, as several pictures of one
            patient in MICLe (Azizi et al. 2021, §3.2). A query with several positives takes the mean of their terms.
        decoupled: leave positives out of the denominator (Yeh et al. 2022, DCL, §3.2, eq. 6).

    Returns:
        This process's part: its mean over processes is the loss of the global batch.
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    k = torch.cat([gather(a), gather(b)])
    here, count = places(a), len(k) // 2
    label = None if group is None else gather(group).repeat(2)

    def term(q: Tensor, itself: Tensor, other: Tensor) -> Tensor:
        logits = (q @ k.T).div_(temperature).scatter_(1, itself[:, None], -torch.inf)
        if label is None and not decoupled:
            return F.cross_entropy(logits, other, reduction="none")
        positive = torch.zeros_like(logits, dtype=torch.bool)
        if label is not None:
            own = label[itself, None]
            positive |= (own == label) & (own >= 0)
        positive.scatter_(1, other[:, None], True).scatter_(1, itself[:, None], False)
        match = logits.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)
        return (logits.masked_fill(positive, NEVER) if decoupled else logits).logsumexp(dim=1) - match

    itself, other = torch.cat([here, here + count]), torch.cat([here + count, here])
    return by_rows(term, len(k), torch.cat([a, b]), itself, other).mean()


@full_precision
def info_nce(
    q: Tensor, positive: Tensor, negatives: Tensor, excluded: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """InfoNCE of many queries against a pool of negatives (van den Oord et al. 2018, CPC, §2.3, eq. 4).

    Args:
        q: (B, M, D) predictions.
        positive: (B, M, D) what each ought to find.
        negatives: (P, D) the pool, or (B, P, D) where each sample has its own.
        excluded: (B, M, P) or broadcastable bool, true where an entry of the pool must not count (padding, or the
            positive itself).

    Returns:
        (B, M) the loss of each query. Nothing is normalised here: CPC scores by plain dot products.
    """
    match = (q * positive).sum(dim=2, keepdim=True) / temperature
    others = (q @ negatives.mT).div_(temperature).masked_fill_(excluded, -torch.inf)
    return torch.logsumexp(torch.cat([match, others], dim=2), dim=2) - match.squeeze(2)


@full_precision
def across_views(
    q: Tensor,
    k: Tensor,
    temperature: float | Tensor,
    own: Tensor,
    queue: Tensor | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    """Each query looks for its key among the keys of all samples, and those that a queue remembers (He et al. 2020,
    MoCo, §3.1, eq. 1; without a queue Chen et al. 2021, MoCo v3, §3, eq. 1, and Dwibedi et al. 2021, NNCLR, eq. 3).

    Args:
        q, k: (B, D) of one view and of the other, in the same order; they are normalised here. Negatives come from
            every process, and their gradient goes back there.
        own: (B,) int64 whose each query and key is: nobody's are negatives of their own.
        queue: (K, D) unit vectors, the same on every process: negatives for all.
        owner: (K,) int64 whose each entry of the queue is, -1 where it holds nothing yet; needed with a queue.

    Returns:
        This process's part: its mean over processes is the loss of the global batch.
    """
    q, keys, owners = F.normalize(q, dim=1), gather(F.normalize(k, dim=1)), gather(own)
    if queue is None or owner is None:
        queue, owner = keys[:0].detach(), owners[:0]

    def term(q: Tensor, place: Tensor, own: Tensor) -> Tensor:
        same = (owners == own[:, None]).scatter_(1, place[:, None], False)
        none = torch.cat([same, (owner == -1) | (owner == own[:, None])], dim=1)
        logits = torch.cat([q @ keys.T, q @ queue.T], dim=1).masked_fill(none, NEVER)
        return F.cross_entropy(logits / temperature, place, reduction="none")

    return by_rows(term, len(keys) + len(queue), q, places(q), own).mean()


@full_precision
def among_instances(
    q: Tensor, positive: Tensor, negatives: Tensor, excluded: Tensor, temperature: float | Tensor
) -> Tensor:
    """Non-parametric softmax: each sample is a class of its own (Wu et al. 2018, §3.1, eq. 2), over its own entry in
    the memory and others of it.

    Args:
        q: (B, D) projections; they are normalised here.
        positive: (B, D) what the memory holds of each, unit vectors.
        negatives: (P, D) what it holds of others, unit vectors.
        excluded: (B, P) bool, true where a negative is the sample's own entry.

    Returns:
        This process's part: its mean over processes is the loss of the global batch.
    """
    q = F.normalize(q, dim=1)

    def term(q: Tensor, positive: Tensor, excluded: Tensor) -> Tensor:
        return info_nce(q[:, None], positive[:, None], negatives, excluded[:, None], temperature)[:, 0]

    return by_rows(term, len(negatives), q, positive, excluded).mean()


@full_precision
def logistic_triplets(a: Tensor, b: Tensor, negatives: Tensor, counted: Tensor) -> Tensor:
    """Time-contrastive logistic loss of an anchor, a positive and K negatives (Franceschi et al. 2019, §3, eq. 1,
    negatives averaged as in the authors' code): −log σ(a·b) − 1/K Σ log σ(−a·n), mean over samples.

    Args:
        a, b: (B, D) of the anchor and of what is part of it.
        negatives: (B, K, D) of what is part of others. Nothing is normalised: the length says how sure the network is.
        counted: (B, K) bool, false where a negative is none.
    """
    apart = F.softplus((negatives @ a[:, :, None]).squeeze(2))
    apart = (apart * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    return (F.softplus(-(a * b).sum(dim=1)) + apart).mean()
