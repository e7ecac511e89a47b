"""Near copies: samples that are much nearer to each other than samples of their source are to their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labelfree.data.spread import spaced

#: Pairs that one sample may be the first of.
MOST_PAIRS = 100
#: Neighbour by whose distance neighbours are told from copies, and samples that are asked for theirs.
NEIGHBOUR, ASKED = 5, 1000
#: Share of the distance of any two samples below which neighbours are copies themselves, not what is usual.
CROWDED = 0.25
#: A column that varies less than this share of what the most varying one does is noise, and is not scaled up.
STILL = 1e-3


def comparable(features: Sequence[Any]) -> list[Any]:
    """Features of a source, and of others, in which distances mean something.

    Dense columns are centred and scaled as in the first of `features`, and constant ones left out, since what all
    samples share would make any two of them alike. Columns of nothing but 0 and 1 keep their unit: scaled up, rare
    categories would drown all numbers. Sparse ones (words) are zero where nothing is, and stay.

    Args:
        features: (N, F) and (M, F) …, dense or sparse.
    """
    if hasattr(features[0], "multiply"):
        return list(features)
    first = np.asarray(features[0], dtype=np.float64)
    middle, deviation = first.mean(axis=0), first.std(axis=0)
    kept = deviation > 1e-6 * np.abs(first).max(axis=0, initial=1e-12)
    flags = ((first == 0) | (first == 1)).all(axis=0)
    scale = np.where(flags, 1.0, np.maximum(deviation, STILL * deviation.max(initial=0.0)))[kept]
    return [((np.asarray(part) - middle)[:, kept] / scale).astype(np.float32) for part in features]


def usual_distance(x: Any, owners: np.ndarray | None = None) -> float:
    """How far a sample is from its 5th neighbour: the median over (N, F) rows, a quarter of that of any pair at least.

    Args:
        x: see `comparable`.
        owners: (N,) rows with the same, if it is not -1, are no neighbours.
    """
    count = x.shape[0]
    asked = spaced(count, ASKED)
    squared = _squared_distances(x[asked], x)
    squared[asked[:, None] == np.arange(count)] = np.nan
    if owners is not None:
        mine = owners[asked, None]
        squared[(mine == owners) & (mine >= 0)] = np.nan
    known = np.sort(squared[~np.isnan(squared).all(axis=1)], axis=1)  # missing ones come last
    if not len(known):
        return 0.0
    place = np.minimum(NEIGHBOUR, (~np.isnan(known)).sum(axis=1)) - 1
    neighbour = np.sqrt(np.median(known[np.arange(len(known)), place]))
    return float(max(neighbour, CROWDED * np.sqrt(np.nanmedian(known))))


def near_pairs(
    x: Any, y: Any, near: float, usual: float, owners: np.ndarray | None = None, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Rows i of x and j of y (of x itself: i < j) with |x_i - y_j| ≤ near · min(usual, √(2 |x_i| |y_j|)).

    The latter is the distance of unrelated rows of that size: rows close to the middle are all close to each other.

    Args:
        x, y: (N, F) and (M, F) features, dense or sparse.
        near: the share.
        usual: see `usual_distance`.
        owners: (N,) of x itself: rows with the same, if it is not -1, make no pair.
        block: rows of x at a time.

    Returns:
        i and j of each pair; an i has `MOST_PAIRS` at most.
    """
    size_x, size_y = (np.sqrt(_squares(part)) for part in (x, y))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, x.shape[0], block):
        here = slice(start, start + block)
        limit = near**2 * np.minimum(usual**2, 2 * size_x[here, None] * size_y)
        close = (_squared_distances(x[here], y) <= limit) & (limit > 1e-9)
        if x is y:
            close &= np.arange(start, start + len(close))[:, None] < np.arange(y.shape[0])
        if owners is not None:
            mine = owners[here, None]
            close &= (mine != owners) | (mine < 0)
        close &= close.cumsum(axis=1) <= MOST_PAIRS
        i, j = np.nonzero(close)
        found.append((i + start, j))
    return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


def near_groups(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """Groups of the rows of pairs (P,), (P,): an exemplar, the one with most neighbours left, and those neighbours.

    What is near the exemplar alone belongs to it: chains of pairs would join what is far apart.
    """
    neighbours: dict[int, set[int]] = {}
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    groups: list[list[int]] = []
    taken: set[int] = set()
    for row in sorted(neighbours, key=lambda row: (-len(neighbours[row]), row)):
        if row not in taken:
            # one whose neighbours have all gone to others is shown beside the first of them
            group = neighbours[row] - taken or {min(neighbours[row])}
            taken |= group | {row}
            groups.append(sorted(group | {row}))
    return sorted(groups)


def _squared_distances(x: Any, y: Any) -> np.ndarray:
    """(N, M) squared distances of dense or sparse rows."""
    products = x @ y.T
    dot = products.toarray() if hasattr(products, "toarray") else products
    return np.maximum(_squares(x)[:, None] + _squares(y) - 2 * dot, 0)


def _squares(x: Any) -> np.ndarray:
    """(N,) squared lengths of dense or sparse rows."""
    squared = x.multiply(x) if hasattr(x, "multiply") else np.square(x, dtype=np.float64)
    return np.asarray(squared.sum(axis=1), dtype=np.float64).ravel()
