"""Data lives where the compute is: a source that fits is read once and kept as one collated batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.ahead import read_ahead
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError

if TYPE_CHECKING:
    from labelfree.modalities.base import Modality

CHUNK = 256
#: A cache takes at most this share of the memory that is free, and no more than the limit (a server's: 16 GiB).
SHARE, LIMIT, SERVER_LIMIT = 0.3, 1 << 30, 16 << 30
#: What streaming keeps in reach at a time.
WINDOW_BYTES = 64 << 20


def sample_bytes(dataset: Dataset, tries: int = 16) -> float:
    """Mean size of a compact sample in bytes, from a few spread over the source.

    Raises:
        LabelfreeError: none of them can be read.
    """
    where = spaced(len(dataset), tries).tolist()
    read = dataset.read(where)
    sizes = [sample.nbytes for sample in read if isinstance(sample, Sample)]
    if not sizes:
        example = next(item for item in read if isinstance(item, Unreadable))
        raise LabelfreeError(
            f"None of the {len(where)} samples tried can be read; '{example.name}': {example.reason}.",
            "Check the source, or name another modality.",
        )
    return float(np.mean(sizes))


def memory_for_cache(server: bool = False, processes: int = 1) -> int:
    """Bytes that the cache of one of so many processes may take on this machine; `server`: one with an accelerator,
    whose memory is for training.
    """
    return min(int(runtime.free_memory() * SHARE), SERVER_LIMIT if server else LIMIT) // processes


def read_all(dataset: Dataset, progress: Callable[[int], None] | None = None) -> tuple[list[Sample], list[Unreadable]]:
    """Every sample, in order."""
    chunks = [range(start, min(start + CHUNK, len(dataset))) for start in range(0, len(dataset), CHUNK)]
    samples: list[Sample] = []
    unreadable: list[Unreadable] = []
    for chunk, items in zip(chunks, read_ahead(dataset.read, chunks), strict=True):
        for item in items:
            (samples if isinstance(item, Sample) else unreadable).append(item)  # type: ignore[arg-type]
        if progress:
            progress(chunk.stop)
    return samples, unreadable


class Cached(Dataset):
    """A dataset whose samples are in memory, and, where they are alike enough, collated into one raw batch.

    Attributes:
        unreadable: samples that are left out, after what the dataset left out.
        lost: how many of these are samples of the dataset.
        whole: the raw batch of all samples that are kept, or None where padding them together would waste memory.
    """

    def __init__(self, dataset: Dataset, modality: Modality, progress: Callable[[int], None] | None = None) -> None:
        self._dataset = dataset
        self._modality = modality
        self._samples: list[Sample] | None = None
        self.whole: Batch | None = dataset.collated()
        if self.whole is not None:
            self.unreadable, self.lost, self.kept = dataset.unreadable, 0, np.arange(len(dataset))
            return
        samples, unreadable = read_all(dataset, progress)
        self.unreadable, self.lost = [*dataset.unreadable, *unreadable], len(unreadable)
        if not samples:
            raise LabelfreeError(f"None of the {len(dataset)} samples can be read.", "Check the source.")
        self.kept = np.array([sample.index for sample in samples])
        if not _alike(samples):
            self._samples = samples
        else:
            self.whole = Batch.cat(list(_collate_all(samples, modality)))

    def __len__(self) -> int:
        return len(self.kept)

    def source_count(self) -> int:
        return self._dataset.source_count()

    def batch(self, places: np.ndarray) -> Batch:
        """The raw batch of the samples at `places` among those kept, wherever the cache lies."""
        if self.whole is not None:
            return self.whole[torch.as_tensor(places).to(self.whole.index.device, non_blocking=True)]
        assert self._samples is not None
        return self._modality.collate([self._samples[place] for place in places])

    def to(self, device: torch.device) -> Cached:
        """Move the collated batch to a device, once."""
        if self.whole is not None:
            self.whole = self.whole.to(device)
        return self

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        if self._samples is not None:
            return [self._samples[i] for i in indices]
        return self._dataset.read([int(self.kept[i]) for i in indices])

    def index_end(self) -> int:
        return int(self.kept[-1]) + 1

    def sizes(self) -> np.ndarray | None:
        sizes = self._dataset.sizes()
        return None if sizes is None else sizes[self.kept]

    def shown(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return self._dataset.shown([int(self.kept[i]) for i in indices])

    def describe(self) -> Description:
        return self._dataset.describe()

    def fingerprint(self) -> str:
        return self._dataset.fingerprint()

    def origin(self) -> tuple[Dataset, np.ndarray]:
        source, rows = self._dataset.origin()
        return source, rows[self.kept]

    def name(self, index: int) -> str:
        return self._dataset.name(int(self.kept[index]))

    def columns(self) -> Sequence[str]:
        return self._dataset.columns()

    def column(self, name: str) -> np.ndarray:
        return self._dataset.column(name)[self.kept]


def _collate_all(samples: list[Sample], modality: Modality) -> Iterator[Batch]:
    """Raw batches of all samples, which are let go as they are taken: memory need not hold them twice over."""
    # Pieces of unequal samples would be padded to different lengths, and could not be joined.
    step = CHUNK if len({_shapes(sample) for sample in samples}) == 1 else len(samples)
    samples.reverse()
    while samples:
        chunk = samples[: -step - 1 : -1]
        del samples[-step:]
        yield modality.collate(chunk)


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in sample.arrays())


def _alike(samples: Sequence[Sample]) -> bool:
    """Whether one padded tensor of all samples costs little more than the samples."""
    if len({len(_shapes(sample)) for sample in samples}) > 1:
        return False
    padded = actual = 0.0
    for arrays in zip(*(sample.arrays() for sample in samples), strict=True):
        shapes = np.array([array.shape for array in arrays])
        padded += arrays[0].itemsize * len(shapes) * shapes.max(axis=0).prod()
        actual += arrays[0].itemsize * shapes.prod(axis=1).sum()
    return bool(padded <= 1.25 * actual)


def cached(dataset: Dataset, modality: Modality) -> Dataset:
    """The dataset with its samples in memory if they fit; else the dataset itself."""
    if isinstance(dataset, Cached):
        return dataset
    room = memory_for_cache(server=runtime.device().type != "cpu")
    if sample_bytes(dataset) * len(dataset) > room:
        return dataset
    return Cached(dataset, modality)
