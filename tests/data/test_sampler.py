"""The order of samples is a pure function, and a permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelfree.data.sampler import Order


@st.composite
def orders(draw):
    count = draw(st.integers(2, 300))
    starts = {0, *draw(st.lists(st.integers(1, count - 1), max_size=8))}
    return Order(
        count=count,
        batch_size=draw(st.integers(1, count)),
        seed=draw(st.integers(0, 5)),
        shards=sorted(starts),
        window=draw(st.integers(0, count)),
    )


@given(orders(), st.integers(0, 3))
def test_an_epoch_shows_no_sample_twice(order, epoch):
    first = epoch * order.steps_per_epoch
    seen = np.concatenate([order.batch(first + step) for step in range(order.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == order.steps_per_epoch * order.batch_size
    assert seen.min() >= 0
    assert seen.max() < order.count


@given(orders(), st.integers(0, 40))
def test_a_step_does_not_depend_on_the_steps_before_it(order, step):
    fresh = Order(order.count, order.batch_size, order.seed, order.shards, order.window)
    for earlier in range(step):
        order.batch(earlier)
    assert np.array_equal(order.batch(step), fresh.batch(step))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_processes_share_a_batch_in_order(parts):
    order = Order(count=100, batch_size=12, seed=1)
    shares = [order.batch(7, part, parts) for part in range(parts)]
    assert np.array_equal(np.concatenate(shares), order.batch(7))


def test_epochs_and_seeds_differ():
    order = Order(count=64, batch_size=64, seed=0)
    assert not np.array_equal(order.batch(0), order.batch(1))
    assert not np.array_equal(order.batch(0), Order(64, 64, seed=1).batch(0))


def test_a_window_keeps_neighbouring_shards_together():
    order = Order(count=1000, batch_size=50, seed=0, shards=range(0, 1000, 25), window=100)
    for step in range(order.steps_per_epoch):
        assert len({index // 25 for index in order.batch(step).tolist()}) <= 8


def test_without_shuffling_samples_come_in_the_order_of_the_source():
    order = Order(count=100, batch_size=12, seed=1, shuffle=False)
    seen = np.concatenate([order.batch(step, part, 2) for step in range(8) for part in (0, 1)])
    assert np.array_equal(seen, np.arange(96))
    assert np.array_equal(order.batch(8), order.batch(0))


def test_batches_by_length_hold_every_sample_once_and_little_padding():
    sizes = np.random.default_rng(0).uniform(1, 10, 1003)
    order = Order(count=1003, batch_size=20, seed=3, sizes=sizes)
    batches = [order.batch(step) for step in range(order.steps_per_epoch)]
    assert len(set(np.concatenate(batches).tolist())) == 1000
    padded = sum(sizes[batch].max() * len(batch) for batch in batches) / sizes[np.concatenate(batches)].sum()
    plain = Order(count=1003, batch_size=20, seed=3)
    before = [plain.batch(step) for step in range(plain.steps_per_epoch)]
    assert padded < 1.1 < 1.5 < sum(sizes[b].max() * len(b) for b in before) / sizes[np.concatenate(before)].sum()
    longest = np.array([sizes[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.5, "lengths come in random order"
    assert np.array_equal(order.batch(7), Order(count=1003, batch_size=20, seed=3, sizes=sizes).batch(7))
    assert not np.array_equal(order.batch(0), order.batch(order.steps_per_epoch))
