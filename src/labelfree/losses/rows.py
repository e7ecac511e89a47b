"""Similarities of many queries with many keys, of which no more are held at a time than memory bears."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from labelfree.losses.precision import full_precision

#: Similarities that are held at once; 64 MB in float32.
MOST = 1 << 24


def by_rows(term: Callable[..., Tensor], keys: int, *queries: Tensor) -> Tensor:
    """(M, ...) `term` of the queries, each tensor of which has M rows.

    Where the similarities with all `keys` would be too many, terms are made for some queries at a time, and made again
    in the backward pass: the whole (M, `keys`) matrix is at no time in memory.
    """
    rows = max(1, MOST // max(1, keys))
    if rows >= len(queries[0]):
        return term(*queries)
    pieces = zip(*(part.split(rows) for part in queries), strict=True)
    return torch.cat([checkpoint(term, *piece, use_reentrant=False) for piece in pieces])


@full_precision
def similarities(x: Tensor, others: Tensor) -> Tensor:
    """(..., D), (K, D) → (..., K) dot products, in float32 also under autocast: a small temperature magnifies what
    bfloat16 rounds away.
    """
    return x @ others.T
