"""Raw batches, step by step: from a cache, or streamed ahead by workers; the same numbers either way."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.ahead import AHEAD, PIECE, read_ahead
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.dataset import Dataset
from labelfree.data.partners import Partners
from labelfree.data.sampler import Order
from labelfree.errors import GUARD, LabelfreeError, death, reason_of

if TYPE_CHECKING:
    from labelfree.modalities.base import Modality

#: Threads at most that read the steps of a training ahead, where no processes do.
READERS = 4


def batches(
    dataset: Dataset, modality: Modality, batch_size: int, indices: Sequence[int] | np.ndarray | None = None
) -> Iterator[Batch]:
    """Raw batches of the samples `indices` (default: all), in order, on the CPU; unreadable ones are left out."""
    count = len(dataset) if indices is None else len(indices)
    return (batch for _, batch in rows_and_batches(dataset, modality, evenly(count, batch_size), indices))


def evenly(count: int, size: int) -> Iterator[slice]:
    """Slices of (count,), `size` long but for the last."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def rows_and_batches(
    dataset: Dataset, modality: Modality, parts: Iterable[slice], indices: Sequence[int] | np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """A raw batch of each of the `parts` of `indices`, as `batches` has them, with the rows (B,) of its samples among
    `indices`; read ahead.
    """
    places = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    if isinstance(dataset, Cached):
        for part in parts:
            yield np.arange(part.start, part.stop), dataset.batch(places[part]).to("cpu")
        return
    chunks = [np.arange(part.start, part.stop) for part in parts]
    pieces = [[chunk[piece] for piece in evenly(len(chunk), PIECE)] for chunk in chunks]
    read = read_ahead(lambda rows: dataset.read(places[rows].tolist()), chain.from_iterable(pieces))
    for chunk, own in zip(chunks, pieces, strict=True):
        items = chain.from_iterable(islice(read, len(own)))
        found = {row: item for row, item in zip(chunk.tolist(), items, strict=True) if isinstance(item, Sample)}
        if found:
            yield np.array(list(found)), modality.collate(list(found.values()))


class WorkerDied(LabelfreeError):
    """A process that read the source is no more."""


class _Stream(torch.utils.data.Dataset):
    """A step number → that step's raw batch and what could not be read; what a DataLoader's workers run."""

    def __init__(
        self, dataset: Dataset, modality: Modality, order: Order, part: int, parts: int, partners: Partners | None
    ) -> None:
        self.dataset, self.modality, self.order, self.part, self.parts = dataset, modality, order, part, parts
        self.partners = partners

    def __getitem__(self, step: int) -> tuple[Batch, list[Unreadable]] | LabelfreeError:
        try:
            return self.read(step)
        except LabelfreeError as error:  # what a worker raises arrives as the text of its traceback
            return error

    def read(self, step: int) -> tuple[Batch, list[Unreadable]]:
        return self.load(*self.places(step))

    def places(self, step: int) -> tuple[np.ndarray, int]:
        """Which samples a step sees, and its epoch. For one thread at a time: the order is remembered."""
        return self.order.batch(step, self.part, self.parts), self.order.epoch(step)

    def load(self, places: np.ndarray, epoch: int) -> tuple[Batch, list[Unreadable]]:
        """The raw batch of samples, and what could not be read."""
        if isinstance(self.dataset, Cached):
            if self.partners is None:
                return self.dataset.batch(places), []
            both = self.dataset.batch(np.concatenate([places, self.partners.of(places, epoch)]))
            return self.partners.tie(both, places), []
        samples, places, bad = self._read(places)
        if self.partners is None:
            return self.modality.collate(samples), bad
        others = self.dataset.read(self.partners.of(places, epoch).tolist())
        bad += [item for item in others if isinstance(item, Unreadable)]
        # whose partner cannot be read is its own; collated together, so that both are padded alike
        samples += [other if isinstance(other, Sample) else own for own, other in zip(samples, others, strict=True)]
        return self.partners.tie(self.modality.collate(samples), places), bad

    def _read(self, wanted: np.ndarray) -> tuple[list[Sample], np.ndarray, list[Unreadable]]:
        """Samples, the places they are from (others than wanted where they stand in), and what could not be read."""
        items, places = self.dataset.read(wanted.tolist()), wanted.copy()
        bad = [item for item in items if isinstance(item, Unreadable)]
        samples = []
        for row, item in enumerate(items):
            if isinstance(item, Unreadable):
                places[row], item = self._stand_in(item.index)
            samples.append(item)
        return samples, places, bad

    def _stand_in(self, index: int) -> tuple[int, Sample]:
        """The next readable sample after an unreadable one, or where many are not the first of a shard that follows: a
        function of the source, whoever reads it.
        """
        count, shards = len(self.dataset), np.asarray(self.dataset.shards)
        following = np.roll(shards, -np.searchsorted(shards, index, side="right"))[:1000].tolist()
        near = ((index + offset) % count for offset in range(1, min(count, 1000)))
        for place in chain(islice(near, 15), following, near):
            item = self.dataset.read([place])[0]
            if isinstance(item, Sample):
                return place, item
        raise LabelfreeError(f"A thousand samples in a row, from number {index}, cannot be read.", "Check the source.")


class Loader:
    """Batches of the steps `start` … `stop`-1 for one process, on its device, read ahead of the training.

    Arguments:
        on_read: told of each streamed batch what could not be read, and how many samples it has.
        beside: processes that share the cores of this machine.
    """

    def __init__(
        self,
        dataset: Dataset,
        modality: Modality,
        order: Order,
        device: torch.device,
        workers: int = 0,
        part: int = 0,
        parts: int = 1,
        on_read: Callable[[list[Unreadable], int], None] | None = None,
        partners: Partners | None = None,
        beside: int = 1,
    ) -> None:
        self.dataset, self.order, self.device = dataset, order, device
        self._readers = max(1, min(READERS, runtime.cores() // beside))
        self.part, self.parts, self.workers = part, parts, workers
        self._stream = _Stream(dataset, modality, order, part, parts, partners)
        self._on_read = on_read

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        if isinstance(self.dataset, Cached):
            for step in range(start, stop):
                yield self._stream.read(step)[0].to(self.device)
            return
        for batch, bad in self._ahead(start, stop):
            if self._on_read:
                self._on_read(bad, len(batch))
            yield batch.to(self.device, non_blocking=True)

    def _ahead(self, start: int, stop: int) -> Iterator[tuple[Batch, list[Unreadable]]]:
        if self.workers == 0:
            wanted = (self._stream.places(step) for step in range(start, stop))
            yield from read_ahead(lambda some: self._stream.load(*some), wanted, self._readers)
            return
        with warnings.catch_warnings():
            # more workers than cores are what the user asked for
            warnings.filterwarnings("ignore", "This DataLoader will create")
            warnings.filterwarnings("ignore", "Got pickle error")  # it is said below
            loader = torch.utils.data.DataLoader(
                self._stream,
                batch_size=None,
                sampler=range(start, stop),
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                pin_memory=False,
                worker_init_fn=_serve,
            )
            found = _begun(loader)
        # also where the program ends in the midst: workers ignore what would end them then
        end = Finalize(self, _kill, (found._workers,), exitpriority=0)
        try:
            for item in found:
                if isinstance(item, LabelfreeError):
                    raise item
                yield item
        except (RuntimeError, OSError, EOFError):  # a death is noticed in many ways
            _check_alive(found._workers)
            raise
        finally:
            found._shutdown_workers()
            end()


def _begun(loader: torch.utils.data.DataLoader) -> Any:
    """An iterator over a loader, whose workers have started.

    Raises:
        LabelfreeError: what they are given cannot be pickled.
        WorkerDied: one ended at once.
    """
    try:
        return iter(loader)
    except BrokenPipeError:
        raise WorkerDied("A process that was to read the source ended at once.", f"A script needs {GUARD}.") from None
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        if multiprocessing.get_start_method() == "fork":  # nothing was pickled
            raise
        raise LabelfreeError(
            f"The source cannot be handed to other processes: {reason_of(error)}.",
            "Set workers=0, or define its class and functions in a module, by name.",
        ) from None


def can_be_handed(dataset: Dataset) -> bool:
    """Whether workers could be given a dataset: those that are not forked get it pickled."""
    if multiprocessing.get_start_method() == "fork":
        return True
    try:
        ForkingPickler.dumps(dataset)
    except Exception:  # whatever a class of the user's raises
        return False
    return True


def _check_alive(workers: list[BaseProcess]) -> None:
    """Raises WorkerDied where one of them is not."""
    for worker in workers:
        with suppress(RuntimeError):  # torch says meanwhile that one ended
            worker.join(0.1)
        if (code := worker.exitcode) is not None:
            how, remedy = death(code)
            raise WorkerDied(f"A process that reads the source {how}.", remedy) from None


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        with suppress(RuntimeError):  # torch says meanwhile that one ended
            worker.kill()
            worker.join(1)


def _serve(worker: int) -> None:
    """Make a worker leave signals to the training, which ends it when it has saved, as they may come to all processes
    at once; and end when the training does, even if that is killed: a fork server's workers are not its children.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
