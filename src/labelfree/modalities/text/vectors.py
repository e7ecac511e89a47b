"""Vectors of words, counted instead of learnt: which words stand near which, in few numbers a word."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

#: Words to either side that count as near.
REACH = 10
#: Power of a neighbour's frequency, so that rare ones do not count for too much.
SMOOTHING = 0.75
#: Directions beyond which a wider table gains little, and takes long.
MOST = 256


def word_vectors(ids: np.ndarray, size: int, dim: int, special: list[int], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the factorised matrix of positive pointwise mutual information between words and near words (Levy &
    Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization", §5; smoothing of Levy et al. 2015, §3.2).

    Args:
        ids: (N,) texts end to end.
        size: V, words of the vocabulary.
        dim: D of the vectors; directions beyond `MOST` are left empty.
        special: ids that are no words.
        end: the id that ends a text; words of two texts are not near.

    Returns:
        (V, D) float32 vectors, and (V,) bool, which of them were seen near another.
    """
    from sklearn.utils.extmath import randomized_svd

    counts = _near(ids, size, special, end)
    seen = np.asarray(counts.sum(axis=1)).ravel() > 0
    vectors = np.zeros((size, dim), dtype=np.float32)
    count = min(dim, MOST, int(seen.sum()) - 1)
    if count > 0:
        left, values, _ = randomized_svd(_mutual_information(counts), count, n_iter=2, random_state=0)
        vectors[:, :count] = left * values
    return vectors, seen & vectors.any(axis=1)


def _near(ids: np.ndarray, size: int, special: list[int], end: int) -> sp.csr_matrix:
    """(V, V) how often two words stand at most `REACH` apart in one text."""
    ids = ids.astype(np.int32)
    text = np.cumsum(ids == end, dtype=np.int32)
    word = ~np.isin(ids, special)
    total = sp.csr_matrix((size, size), dtype=np.float64)
    for apart in range(1, REACH + 1):
        both = word[:-apart] & word[apart:] & (text[:-apart] == text[apart:])
        pairs = (ids[:-apart][both], ids[apart:][both])
        total += sp.coo_matrix((np.ones(len(pairs[0])), pairs), shape=(size, size)).tocsr()
    return (total + total.T).tocsr()


def _mutual_information(counts: sp.csr_matrix) -> sp.csr_matrix:
    """(V, V) log p(a, b) / (p(a) p(b)) where it is above 0."""
    found = counts.tocoo()
    often = np.asarray(counts.sum(axis=1)).ravel()
    near = often**SMOOTHING
    value = np.log(found.data / often[found.row] / near[found.col] * near.sum())
    kept = value > 0
    return sp.csr_matrix((value[kept], (found.row[kept], found.col[kept])), shape=counts.shape)
