"""Cross-entropy over a vocabulary in one sweep, against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from processes import average_gradients, together
from torch import Tensor, nn

from labelfree.distributed import all_sum, world_size
from labelfree.losses import vocabulary
from labelfree.losses.vocabulary import vocabulary_loss

TOKENS, WIDTH, IDS = 12, 6, 20


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Features, ids, and which of the tokens count."""
    torch.manual_seed(0)
    return 2 * torch.randn(TOKENS, WIDTH), torch.randint(IDS, (TOKENS,)), torch.rand(TOKENS) > 0.4


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, IDS)


@pytest.mark.parametrize("most", [1 << 22, 5 * IDS, 1])
def test_loss_and_gradient_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(vocabulary, "MOST", most)
    last, (x, target, counted) = layer(), tokens()
    x.requires_grad_()
    plain = F.cross_entropy(last(x)[counted], target[counted])
    found = vocabulary_loss(x, last.weight, last.bias, target, counted)
    torch.testing.assert_close(found, plain)
    leaves = [x, last.weight, last.bias]
    wanted = [3 * grad for grad in torch.autograd.grad(plain, leaves)]
    torch.testing.assert_close(list(torch.autograd.grad(3 * found, leaves)), wanted)


def test_tokens_count_as_much_as_they_are_said_to() -> None:
    last, (x, target, _) = layer(), tokens()
    weights = torch.rand(TOKENS)
    each = F.cross_entropy(last(x), target, reduction="none")
    found = vocabulary_loss(x, last.weight, last.bias, target, weights)
    torch.testing.assert_close(found, (each * weights).sum() / weights.sum())


def test_large_logits_stay_finite() -> None:
    last, (x, target, counted) = layer(), tokens()
    x = (1e4 * x).requires_grad_()
    loss = vocabulary_loss(x, last.weight, last.bias, target, counted)
    torch.testing.assert_close(loss, F.cross_entropy(last(x)[counted], target[counted]))
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_where_no_token_counts_there_is_nothing_to_learn() -> None:
    last, (x, target, counted) = layer(), tokens()
    loss = vocabulary_loss(x, last.weight, last.bias, target, torch.zeros_like(counted))
    loss.backward()
    assert loss == 0
    assert last.weight.grad is not None
    assert not last.weight.grad.any()


def test_without_gradient_none_is_made() -> None:
    last, (x, target, counted) = layer(), tokens()
    with torch.no_grad():
        loss = vocabulary_loss(x, last.weight, last.bias, target, counted)
    torch.testing.assert_close(loss, vocabulary_loss(x, last.weight, last.bias, target, counted).detach())
    assert not loss.requires_grad


def test_in_autocast_products_are_quick_and_sums_are_in_full_precision() -> None:
    last, (x, target, counted) = layer(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        loss = vocabulary_loss(x, last.weight, last.bias, target, counted)
        logits = last(x).float()
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits[counted], target[counted]), rtol=1e-2, atol=1e-2)
    assert last.weight.grad is not None
    assert last.weight.grad.dtype == torch.float32


def loss_and_gradient(rank: int) -> dict[str, Tensor]:
    last, (x, target, counted) = layer(), tokens()
    size = TOKENS // world_size()
    mine = slice(rank * size, (rank + 1) * size)
    loss = vocabulary_loss(x[mine], last.weight, last.bias, target[mine], counted[mine])
    loss.backward()
    if world_size() > 1:
        average_gradients(last)
    assert last.weight.grad is not None
    assert last.bias.grad is not None
    return {"loss": all_sum(loss.detach()) / world_size(), "weight": last.weight.grad, "bias": last.bias.grad}


def test_two_processes_are_one() -> None:
    one = loss_and_gradient(0)
    for other in together(loss_and_gradient):
        for name, expected in one.items():
            torch.testing.assert_close(other[name], expected)
