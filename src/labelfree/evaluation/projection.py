"""From features to a map: what an evaluation keeps of them, and where the report draws each point."""

from __future__ import annotations

import numpy as np

#: Principal components that are kept, and points that t-SNE needs.
COMPONENTS, FEWEST = 30, 30


def components(x: np.ndarray) -> np.ndarray:
    """(N, D) features → (N, at most `COMPONENTS`) principal components of their directions, the largest first."""
    x = np.asarray(x, dtype=np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (left * values)[:, :COMPONENTS]


def project(x: np.ndarray) -> tuple[np.ndarray, str]:
    """(N, K) components → (N, 2) the map, and how it is drawn: t-SNE that starts from the first two (van der Maaten &
    Hinton 2008), or those alone where points are few or all alike.
    """
    start = np.pad(x, ((0, 0), (0, 2)))[:, :2]
    spread = float(start[:, 0].std())
    if len(x) < FEWEST or spread < 1e-4:
        return start, "PCA"
    from sklearn.manifold import TSNE

    # this scale of the start is the one that is recommended
    drawn = TSNE(perplexity=min(30.0, len(x) / 4), init=start / spread * 1e-4, random_state=0, max_iter=500, n_jobs=1)
    return drawn.fit_transform(x.astype(np.float32)), "t-SNE"
