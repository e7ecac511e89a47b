"""What a classical model sees of pictures and films: the same numbers of every sample, standardised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.dataset import Dataset

if TYPE_CHECKING:
    from labelfree.modalities.base import Modality


def standardised(
    modality: Modality, parts: Sequence[Dataset], describe: Callable[[Batch], Tensor], batch_size: int
) -> list[np.ndarray]:
    """(N, F) float32 for each part: what `describe` makes of its raw batches (B samples → (B, F)), by mean and
    deviation of the first part; zeros where a sample cannot be read.
    """
    from labelfree.data.loader import evenly, rows_and_batches

    described = [
        [
            (rows, describe(batch).numpy())
            for rows, batch in rows_and_batches(dataset, modality, evenly(len(dataset), batch_size))
        ]
        for dataset in parts
    ]
    width = max((values.shape[1] for found in described for _, values in found), default=0)
    first = np.concatenate([values for _, values in described[0]] or [np.zeros((1, width), np.float32)])
    mean, deviation = first.mean(axis=0), np.maximum(first.std(axis=0), 1e-3)
    out = [np.zeros((len(dataset), width), np.float32) for dataset in parts]
    for features, found in zip(out, described, strict=True):
        for rows, values in found:
            features[rows] = (values - mean) / deviation
    return out
