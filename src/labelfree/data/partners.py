"""Samples of one case (several pictures of a patient): who is whose partner, epoch by epoch."""

from __future__ import annotations

import numpy as np
import torch

from labelfree.data.batch import Batch
from labelfree.data.columns import codes
from labelfree.data.draw import Draw

#: Name, in `Batch.parts`, of the batch of partners.
PARTNER = "partner"


class Partners:
    """For each sample another one of its case, drawn anew each epoch; itself where it is alone in it.

    Args:
        cases: (N,) the case of each sample; "", None or NaN where it has none.
        seed: of the run.
    """

    def __init__(self, cases: np.ndarray, seed: int) -> None:
        words = np.array(["" if case is None or case != case else str(case) for case in cases.tolist()], dtype=object)
        number = codes(words)
        #: (N,) int64 number of each sample's case, -1 without one.
        self.number = np.where(words == "", -1, number)
        # who has no case is alone in one of their own
        own = np.where(words == "", len(words) + np.arange(len(words)), number)
        self._order = np.argsort(own, kind="stable")
        _, first, inverse, counts = np.unique(
            own[self._order], return_index=True, return_inverse=True, return_counts=True
        )
        self._place = np.empty(len(own), dtype=np.int64)
        self._first, self._count = np.empty_like(self._place), np.empty_like(self._place)
        self._first[self._order], self._count[self._order] = first[inverse], counts[inverse]
        self._place[self._order] = np.arange(len(own)) - first[inverse]
        self._seed = seed

    def of(self, samples: np.ndarray, epoch: int) -> np.ndarray:
        """(B,) int64: a partner of each sample, a pure function of seed, epoch and sample."""
        bits = Draw.start(self._seed, epoch, 0, torch.as_tensor(samples)).integers("partner", 1 << 50).numpy()
        count = self._count[samples]
        step = 1 + bits % np.maximum(count - 1, 1)
        return self._order[self._first[samples] + (self._place[samples] + step * (count > 1)) % count]

    def tie(self, both: Batch, samples: np.ndarray) -> Batch:
        """The raw batch of samples and then of their partners, as a batch of the former with the latter in `parts`."""
        own, other = both[: len(samples)], both[len(samples) :]
        group = torch.as_tensor(self.number[samples]).to(own.index.device, non_blocking=True)
        return own.with_(group=group, parts={**own.parts, PARTNER: other})
