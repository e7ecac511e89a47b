"""Batches are the same however they are read, and bad samples are left out, not fatal."""

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch

from labelfree.data import ahead, cache
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.cache import Cached, sample_bytes
from labelfree.data.dataset import Dataset, Description
from labelfree.data.loader import Loader, WorkerDied, batches, can_be_handed, evenly, rows_and_batches
from labelfree.data.partners import PARTNER, Partners
from labelfree.data.sampler import Order
from labelfree.errors import LabelfreeError

CPU = torch.device("cpu")


class Numbers(Dataset):
    """Sample i is the number i; those in `bad` cannot be read; `widths` gives each its length."""

    def __init__(self, count, bad=(), widths=None, shards=(0,)):
        self.count, self.bad, self.widths, self.shards = count, set(bad), widths, shards

    def __len__(self):
        return self.count

    def read(self, indices):
        return [self._one(index) for index in indices]

    def _one(self, index):
        if index in self.bad:
            return Unreadable(index, f"number {index}", "bad luck")
        return Sample(np.full(self.widths[index] if self.widths else 2, index, np.float32), index)

    def describe(self):
        return Description("numbers", self.count)

    def fingerprint(self):
        return str(self.count)


class Plain:
    """The part of a modality that loading needs."""

    def collate(self, samples):
        longest = max(len(sample.data) for sample in samples)
        data = torch.stack([torch.from_numpy(np.resize(sample.data, longest)) for sample in samples])
        return Batch(data, torch.tensor([sample.index for sample in samples]))


def loader(dataset, workers=0, bad=None, batch_size=8):
    order = Order(len(dataset), batch_size, seed=3, shards=dataset.shards, window=16)
    tell = None if bad is None else lambda some, count: bad.extend(some)
    return Loader(dataset, Plain(), order, CPU, workers, on_read=tell)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    source = Numbers(50, bad=[5], shards=(0, 10, 30))
    expected = [batch.data for batch in loader(source).steps(0, 12)]
    found = [batch.data for batch in loader(source, workers).steps(0, 12)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_starting_late_is_the_end_of_starting_early():
    source = Numbers(50)
    whole = [batch.index.tolist() for batch in loader(source).steps(0, 10)]
    assert [batch.index.tolist() for batch in loader(source).steps(6, 10)] == whole[6:]


def test_the_cache_leaves_unreadable_samples_out_and_keeps_their_names():
    kept = Cached(Numbers(20, bad=[3, 7]), Plain())
    assert len(kept) == 18
    assert {item.index for item in kept.unreadable} == {3, 7}
    assert kept.batch(np.array([3, 17])).index.tolist() == [4, 19]
    assert kept.name(3) == "row 4"
    assert kept.read([3])[0].index == 4


def test_on_a_server_what_is_evaluated_may_take_as_much_memory_as_what_is_trained(monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 100)
    assert not isinstance(cache.cached(Numbers(50), Plain()), Cached)
    monkeypatch.setattr(cache.runtime, "device", lambda: torch.device("cuda"))
    assert isinstance(cache.cached(Numbers(50), Plain()), Cached)


def test_streaming_puts_the_next_readable_sample_in_place_and_reports():
    bad = []
    seen = list(loader(Numbers(16, bad=[2, 3]), bad=bad).steps(0, 2))
    assert sorted(torch.cat([batch.index for batch in seen]).tolist()) == sorted([*range(2), 4, 4, *range(4, 16)])
    assert {item.index for item in bad} == {2, 3}


def test_samples_of_very_different_length_are_not_padded_together():
    assert Cached(Numbers(40, widths=[2] * 39 + [4000]), Plain()).whole is None
    assert Cached(Numbers(40), Plain()).whole is not None


def test_batches_in_order_skip_what_cannot_be_read():
    for source in (Numbers(10, bad=[4]), Cached(Numbers(10, bad=[4]), Plain())):
        found = list(rows_and_batches(source, Plain(), evenly(len(source), 4)))
        seen = torch.cat([batch.index for batch in batches(source, Plain(), 4)])
        assert seen.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        rows = [row for rows, _ in found for row in rows.tolist()]
        assert rows == ([*range(9)] if isinstance(source, Cached) else [0, 1, 2, 3, 5, 6, 7, 8, 9])


def test_what_is_not_in_memory_is_read_by_threads_ahead_and_comes_in_order(monkeypatch):
    monkeypatch.setattr(ahead.runtime, "cores", lambda: 2)
    met = threading.Barrier(2, timeout=10)

    class Shared(Numbers):
        def read(self, indices):
            met.wait()
            return super().read(indices)

    for found in (batches(Shared(128), Plain(), 64), [Cached(Shared(512), Plain()).whole]):
        index = torch.cat([batch.index for batch in found])
        assert index.tolist() == list(range(len(index)))
    alone, together = (
        [batch.index.tolist() for batch in loader(kind(64, shards=(0, 10, 30))).steps(0, 16)]
        for kind in (Numbers, Shared)
    )
    assert alone == together


def test_nothing_readable_is_an_error_that_says_why():
    with pytest.raises(LabelfreeError, match="bad luck"):
        sample_bytes(Numbers(4, bad=range(4)))


def test_an_error_while_reading_ahead_reaches_the_reader():
    class Broken(Numbers):
        def read(self, indices):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        next(loader(Broken(20)).steps(0, 3))


def test_an_error_in_a_worker_reaches_the_user_with_its_remedy():
    with pytest.raises(LabelfreeError) as caught:
        next(loader(Numbers(1200, bad=range(1200)), workers=1).steps(0, 3))
    assert caught.value.problem.startswith("A thousand samples in a row")
    assert caught.value.remedy == "Check the source."


@pytest.fixture(params=["fork", "forkserver"])
def started_by(request):
    """How processes start meanwhile."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


class Started(Numbers):
    """Says in `place`, a folder, which processes read it."""

    def __init__(self, count, place):
        super().__init__(count)
        self.place = place

    def read(self, indices):
        (self.place / str(os.getpid())).touch()
        return super().read(indices)


def test_signals_to_all_processes_are_the_trainings_alone_and_workers_end_with_it(started_by, tmp_path):
    with closing(loader(Started(50, tmp_path), workers=1).steps(0, 12)) as steps:
        seen = [next(steps).index.tolist()]
        (worker,) = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
        for number in (signal.SIGINT, signal.SIGTERM):
            worker.send_signal(number)
        seen += [batch.index.tolist() for _, batch in zip(range(8), steps, strict=False)]
        assert seen == [batch.index.tolist() for batch in loader(Numbers(50)).steps(0, 9)]
    assert not worker.is_running()


KEPT = []


def _end_in_the_midst():
    KEPT.append(loader(Numbers(500), workers=2).steps(0, 60))
    next(KEPT[0])
    sys.exit(7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_program_that_ends_in_the_midst_of_reading_ends_its_workers():
    program = multiprocessing.get_context("fork").Process(target=_end_in_the_midst)
    program.start()
    program.join(60)
    assert program.exitcode == 7


def test_a_worker_that_was_killed_is_named(tmp_path):
    steps = loader(Started(500, tmp_path), workers=1).steps(0, 60)
    next(steps)
    (worker,) = tmp_path.iterdir()
    os.kill(int(worker.name), signal.SIGKILL)
    with pytest.raises(WorkerDied, match=r"A process that reads the source was killed by SIGKILL\. .* workers=0"):
        list(steps)


def test_a_source_that_cannot_be_handed_to_workers_is_named(started_by):
    source = Numbers(50)
    assert can_be_handed(source)
    source.one = lambda: 1
    if started_by == "fork":
        assert can_be_handed(source)
        assert len(list(loader(source, workers=1).steps(0, 2))) == 2
    else:
        assert not can_be_handed(source)
        with pytest.raises(LabelfreeError, match=r"The source cannot be handed .*lambda.*\. Set workers=0"):
            next(loader(source, workers=1).steps(0, 2))


def test_the_partner_of_a_stand_in_is_of_its_own_case():
    cases = np.repeat(np.arange(8), 2).astype(object)
    partners = Partners(cases, seed=0)
    source = Numbers(16, bad=[3, 8])  # one of the second case, one of the fifth
    order = Order(16, 8, seed=3)
    seen = set()
    for batch in Loader(source, Plain(), order, CPU, partners=partners).steps(0, 8):
        other = batch.parts[PARTNER]
        for own, partner, group in zip(batch.index.tolist(), other.index.tolist(), batch.group.tolist(), strict=True):
            assert cases[own] == cases[partner] == group
            assert own == partner if own in (2, 9) else own != partner, "alone where its partner cannot be read"
            seen.add(own)
    assert seen == {*range(16)} - {3, 8}
