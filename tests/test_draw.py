"""Draws: random numbers that are a pure function of seed, epoch, sample and view."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelfree.data.draw import Draw

INDEX = torch.arange(4096)


def start(seed: int = 0, epoch: int = 0, step: int = 0, index: torch.Tensor = INDEX) -> Draw:
    return Draw.start(seed, epoch, step, index)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000), st.permutations(list(range(12))))
def test_a_sample_draws_the_same_in_any_batch_order_or_company(seed: int, epoch: int, order: list[int]) -> None:
    whole = start(seed, epoch, 0, torch.arange(12)).view(1)
    shuffled = start(seed, epoch, 7, torch.tensor(order)).view(1)
    assert torch.equal(whole.uniform("crop", 3)[order], shuffled.uniform("crop", 3))
    alone = start(seed, epoch, 3, torch.tensor([order[0]])).view(1)
    assert torch.equal(alone.normal("noise", 5), whole.normal("noise", 5)[order[:1]])


@pytest.mark.parametrize(
    "other", [start(seed=1), start(epoch=1), start().view(0), start().view("teacher"), start(index=INDEX + 4096)]
)
def test_another_seed_epoch_view_or_sample_draws_independently(other: Draw) -> None:
    pair = torch.stack([start().uniform("x"), other.uniform("x")])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.05


def test_names_draw_independently_and_repeat() -> None:
    draw = start()
    assert torch.equal(draw.uniform("x"), draw.uniform("x"))
    assert torch.corrcoef(torch.stack([draw.uniform("x"), draw.uniform("y")]))[0, 1].abs() < 0.05


def test_uniform_fills_its_interval_evenly() -> None:
    x = start().uniform("x", 8, low=-2, high=2)
    assert x.shape == (4096, 8)
    assert -2 <= x.min() < -1.99
    assert 1.99 < x.max() < 2
    assert (torch.histc(x, 16, -2, 2) / x.numel() - 1 / 16).abs().max() < 0.005
    assert torch.corrcoef(x.T).fill_diagonal_(0).abs().max() < 0.06


def test_normal_has_the_moments_of_a_normal() -> None:
    x = start().normal("x", 16)
    assert x.mean().abs() < 0.02
    assert (x.std() - 1).abs() < 0.02
    assert ((x**4).mean() - 3).abs() < 0.2
    assert x.isfinite().all()


@pytest.mark.parametrize("p", [0.999993, 0.9999999, 1.0])
def test_what_is_almost_certain_happens(p: float) -> None:
    assert start().bernoulli("x", p, 8).all()
    x = torch.ones(len(start()), 8)
    assert start().dropout("x", x, 1e-6).min() >= 1


def test_bernoulli_and_integers_are_fair() -> None:
    assert (start().bernoulli("x", 0.3, 8).float().mean() - 0.3).abs() < 0.01
    counts = torch.bincount(start().integers("x", 7, 8).flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts / counts.sum() - 1 / 7).abs().max() < 0.01


def test_permutations_are_permutations_and_each_place_is_as_likely() -> None:
    order = start().permutation("x", 5)
    assert torch.equal(order.sort(dim=1).values, torch.arange(5).expand(4096, 5))
    assert (order.float().mean(dim=0) - 2).abs().max() < 0.1


def test_dropout_keeps_the_mean_and_does_nothing_at_zero() -> None:
    x = torch.ones(4096, 6)
    assert start().dropout("d", x, 0) is x
    dropped = start().dropout("d", x, 0.25)
    assert (dropped.mean() - 1).abs() < 0.02
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])


def test_shared_draws_are_one_for_the_batch_and_change_with_the_step() -> None:
    first, same, later = start(step=5), start(step=5, index=INDEX[:3]), start(step=6)
    assert torch.equal(first.shared.uniform("x"), same.shared.uniform("x"))
    assert not torch.equal(first.shared.uniform("x"), later.shared.uniform("x"))
    assert not torch.equal(first.shared.uniform("x"), first.view(1).shared.uniform("x"))


def test_rows_and_joins_keep_each_sample_its_own_numbers() -> None:
    draw = start(index=torch.arange(6))
    joined = Draw.cat([draw[2:4], draw[torch.tensor([5, 0])]])
    assert torch.equal(joined.uniform("x"), draw.uniform("x")[[2, 3, 5, 0]])
    assert len(joined) == 4


def test_the_function_never_changes() -> None:
    """Runs resume across versions only if the same inputs give the same bits for ever."""
    assert start(index=torch.tensor([0, 1])).bits("x").tolist() == [-1037700970951158063, -4385400722559687438]
