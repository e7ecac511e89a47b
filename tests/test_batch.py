"""Batches: choosing rows, joining and moving them keeps what belongs together together."""

import torch

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw


def make(index: list[int]) -> Batch:
    rows = torch.tensor(index)
    return Batch(
        data=rows[:, None].float() * torch.ones(3),
        index=rows,
        lengths=rows + 10,
        time=rows[:, None].double() + torch.arange(3),
        group=rows % 2,
        draw=Draw.start(0, 0, 0, rows),
        extra={"offset": rows * 100},
    )


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.data, b.data), (a.index, b.index), (a.lengths, b.lengths), (a.time, b.time), (a.group, b.group)]
    pairs += [(a.draw.key, b.draw.key), (a.extra["offset"], b.extra["offset"])]
    return all(torch.equal(x, y) for x, y in pairs)


def test_rows_can_be_chosen_by_slice_or_by_number() -> None:
    batch = make([4, 7, 1, 9])
    assert same(batch[1:3], make([7, 1]))
    assert same(batch[torch.tensor([3, 0])], make([9, 4]))
    assert len(batch[:1]) == 1


def test_rows_of_16_bits_keep_their_values() -> None:
    data = torch.tensor([[0, 1], [40000, 65535]], dtype=torch.uint16)
    chosen = Batch(data=data, index=torch.arange(2))[torch.tensor([1, 0, 1])].data
    assert chosen.dtype == torch.uint16
    assert chosen.tolist() == [[40000, 65535], [0, 1], [40000, 65535]]


def test_joining_the_parts_gives_the_whole() -> None:
    assert same(Batch.cat([make([4, 7]), make([1])]), make([4, 7, 1]))


def test_absent_fields_stay_absent() -> None:
    bare = Batch(data=torch.zeros(2, 3), index=torch.arange(2))
    for batch in (bare[:1], Batch.cat([bare, bare]), bare.to("cpu")):
        assert batch.lengths is batch.time is batch.group is batch.draw is None
        assert batch.extra == {}


def test_moving_moves_every_field() -> None:
    moved = make([1, 2]).to("meta")
    tensors = [moved.data, moved.index, moved.lengths, moved.time, moved.group, moved.draw.key, moved.extra["offset"]]
    assert {t.device.type for t in tensors} == {"meta"}


def test_a_changed_copy_leaves_the_original_alone() -> None:
    batch = make([1])
    changed = batch.with_(data=batch.data + 1)
    assert not torch.equal(batch.data, changed.data)
    assert torch.equal(batch.index, changed.index)


def test_joined_with_samples_of_unequal_length_equal_ones_have_theirs() -> None:
    equal = Batch(data=torch.zeros(2, 9), index=torch.arange(2))
    unequal = equal.with_(lengths=torch.tensor([4, 7]))
    assert Batch.cat([equal, unequal]).steps().tolist() == [9, 9, 4, 7]
    assert Batch.cat([unequal, equal]).steps().tolist() == [4, 7, 9, 9]
