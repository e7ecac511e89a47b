"""Order as a pure function: which samples a step sees depends on (seed, step) alone, so resuming is one integer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Batches among which samples are sorted by length.
POOL = 16


@dataclass(frozen=True)
class Order:
    """The order in which samples are seen.

    A source that is cheap to read anywhere is permuted whole. One that comes in shards (row groups, files) is permuted
    shard by shard, and then sample by sample within windows of neighbouring shards, so that only a window need be in
    reach at a time. A step never crosses an epoch: the samples left over after the last whole batch of an epoch wait
    for the next permutation.

    Attributes:
        count: samples in the source.
        batch_size: samples of a global batch; at most `count`.
        seed: of the run.
        shards: first sample of each shard, ascending, starting with 0.
        window: about how many samples a window has, which is whole shards; 0 for all.
        shuffle: false where samples must come in the order of the source (events in time).
        sizes: (N,) how long each sample is; those of about one length then share a batch. None for no such thing.
    """

    count: int
    batch_size: int
    seed: int
    shards: Sequence[int] = (0,)
    window: int = 0
    shuffle: bool = True
    sizes: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
        """Sample indices of `step`'s global batch, or of process `part`'s contiguous share of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first, size = place * self.batch_size, self.batch_size // parts
        start = first + part * size
        if not self.shuffle:
            return np.arange(start, start + size)
        return self._slice(epoch, start, start + size)

    def _slice(self, epoch: int, start: int, stop: int) -> np.ndarray:
        starts, members = self._windows(epoch)
        pieces = []
        for number in range(int(np.searchsorted(starts, start, side="right")) - 1, len(members)):
            if starts[number] >= stop:
                break
            samples = self._window(epoch, number, members[number])
            pieces.append(samples[max(0, start - starts[number]) : stop - starts[number]])
        return np.concatenate(pieces)

    def _windows(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places at which each window starts, and the shards in it."""
        key = ("windows", epoch)
        if key not in self._memory:
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
            sizes = np.diff([*self.shards, self.count])[shards]
            reach = self.window or self.count
            number = (np.cumsum(sizes) - sizes) // reach
            members = np.split(shards, np.flatnonzero(np.diff(number)) + 1)
            totals = [int(np.diff([*self.shards, self.count])[member].sum()) for member in members]
            self._remember(key, (np.cumsum([0, *totals[:-1]]), members))
        return self._memory[key]  # type: ignore[return-value]

    def _window(self, epoch: int, number: int, members: np.ndarray) -> np.ndarray:
        key = ("window", epoch, number)
        if key not in self._memory:
            ends = [*self.shards[1:], self.count]
            samples = np.concatenate([np.arange(self.shards[m], ends[m]) for m in members])
            generator = np.random.default_rng((self.seed, epoch, number))
            mixed = generator.permutation(samples)
            if self.sizes is not None:
                mixed = by_length(mixed, self.sizes[mixed], self.batch_size, generator)
            self._remember(key, mixed)
        return self._memory[key]  # type: ignore[return-value]

    @property
    def _memory(self) -> dict[tuple[object, ...], object]:
        return self.__dict__.setdefault("_cached", {})

    def _remember(self, key: tuple[object, ...], value: object) -> None:
        """Keep the newest few: steps ask for neighbouring places."""
        memory = self._memory
        memory[key] = value
        while len(memory) > 4:
            del memory[next(iter(memory))]


def by_length(samples: np.ndarray, sizes: np.ndarray, batch: int, generator: np.random.Generator) -> np.ndarray:
    """Reorder shuffled samples so that those of a batch are of about one length: sorted among the next `POOL` batches,
    which then come in random order.
    """
    pool = np.arange(len(samples)) // (POOL * batch)
    ordered = samples[np.lexsort((sizes, pool))]
    full = len(samples) // batch
    places = np.arange(full * batch).reshape(full, batch)
    pools = [places[first : first + POOL] for first in range(0, full, POOL)]
    mixed = np.concatenate([generator.permutation(part) for part in pools]).ravel() if pools else places.ravel()
    return np.concatenate([ordered[mixed], ordered[full * batch :]])
