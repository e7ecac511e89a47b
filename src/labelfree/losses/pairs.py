"""Losses of two sides tied by row: each row's sides belong together, those of different rows do not.

Legend: B rows of this process, R processes, W width, q query, k key. No process ever holds all (R·B)² similarities, and
where even its own B × R·B are many, they are made for some rows at a time, and made again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.distributed import gather, places, weighted_mean
from labelfree.losses.contrastive import NEVER
from labelfree.losses.precision import full_precision
from labelfree.losses.rows import by_rows


@full_precision
def clip_loss(a: Tensor, b: Tensor, scale: Tensor, there: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, CLIP, fig. 3): each a finds its b among all b, and each b its a.

    Args:
        a, b: (B, W) unit vectors of the two sides, row by row.
        scale: what similarities are multiplied with, 1 / τ.
        there: (B,) bool, false where a row lacks a side: it is neither query nor key.

    Returns:
        This process's part: its mean over processes is the loss of the global batch.
    """
    keys = gather(there.long()).bool()

    def one_way(q: Tensor, k: Tensor) -> Tensor:
        def term(q: Tensor, place: Tensor) -> Tensor:
            logits = (scale * (q @ k.T)).masked_fill(~keys, NEVER)
            return F.cross_entropy(logits, place, reduction="none")

        return by_rows(term, len(k), q, places(q))

    return weighted_mean((one_way(a, gather(b)) + one_way(b, gather(a))) / 2, there)


@full_precision
def siglip_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, there: Tensor) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al. 2023, SigLIP, §3.2): of each a and b by itself, do they belong together?

    Args:
        a, b, scale, there: as `clip_loss` has them.
        bias: added to the similarities, so that the many pairs which do not match weigh little at the start.

    Returns:
        As `clip_loss`.
    """
    k, keys = gather(b), gather(there.long()).bool()

    def term(q: Tensor, place: Tensor) -> Tensor:
        match = place[:, None] == torch.arange(len(k), device=q.device)
        logits = scale * (q @ k.T) + bias
        return (F.softplus(torch.where(match, -logits, logits)) * keys).sum(dim=1)

    return weighted_mean(by_rows(term, len(k), a, places(a)), there)
