"""Order as a pure function: which samples a step sees depends on (seed, step) alone, so resuming is one integer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

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

        def cut() -> tuple[np.ndarray, list[np.ndarray]]:
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
            sizes = np.diff([*self.shards, self.count])[shards]
            ends = np.cumsum(sizes)
            firsts = np.flatnonzero(np.diff((ends - sizes) // (self.window or self.count))) + 1
            return np.concatenate([[0], ends[firsts - 1]]), np.split(shards, firsts)

        return self._kept(("windows", epoch), cut)

    def _window(self, epoch: int, number: int, members: np.ndarray) -> np.ndarray:
        def mix() -> np.ndarray:
            ends = [*self.shards[1:], self.count]
            samples = np.concatenate([np.arange(self.shards[m], ends[m]) for m in members])
            generator = np.random.default_rng((self.seed, epoch, number))
            mixed = generator.permutation(samples)
            if self.sizes is None:
                return mixed
            return by_length(mixed, self.sizes[mixed], self.batch_size, generator)

        return self._kept(("window", epoch, number), mix)

    def _kept(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` gives, kept among the four that were asked for last: steps ask for neighbouring places."""
        memory = self.__dict__.setdefault("_cached", {})
        memory[key] = value = memory.pop(key) if key in memory else make()
        while len(memory) > 4:
            del memory[next(iter(memory))]
        return value


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
