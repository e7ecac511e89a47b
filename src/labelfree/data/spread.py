"""Some samples of many, from all over a source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Shards that are looked into for headers and statistics.
MOST_SHARDS = 32


def spaced(count: int, most: int) -> np.ndarray:
    """(K,) int64 up to `most` of `count` indices, evenly spaced and rising; the first and the last are among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(np.int64))


def spread(count: int, shards: Sequence[int], wanted: int) -> list[int]:
    """Up to `wanted` indices all over a source of `count`, but from few of its shards where it has many."""
    if len(shards) <= MOST_SHARDS:
        return spaced(count, wanted).tolist()
    chosen = spaced(len(shards), MOST_SHARDS)
    starts, ends = np.asarray(shards)[chosen], np.asarray([*shards[1:], count])[chosen]
    each = -(-wanted // MOST_SHARDS)
    parts = [a + spaced(b - a, each) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.unique(np.concatenate(parts)).tolist()
