"""Losses of two sides: equal to a slow reference, whatever is missing, and however many rows are made at a time."""

import pytest
import torch
import torch.nn.functional as F
from memory import most_bytes

from labelfree.losses import rows
from labelfree.losses.pairs import clip_loss, siglip_loss

SCALE, BIAS = torch.tensor(5.0), torch.tensor(-3.0)


def sides(count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a, b = F.normalize(torch.randn(2, count, 6), dim=2)
    return a.clone().requires_grad_(), b.clone().requires_grad_()


def slow_clip(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    terms = []
    for i in range(len(a)):
        for q, keys in ((a[i], b), (b[i], a)):
            odds = torch.stack([(SCALE * (q @ key)).exp() for key in keys])
            terms.append(-(odds[i] / odds.sum()).log())
    return torch.stack(terms).mean()


def slow_siglip(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for i in range(len(a)):
        for j in range(len(b)):
            z = 1 if i == j else -1
            total = total - F.logsigmoid(z * (SCALE * (a[i] @ b[j]) + BIAS))
    return total / len(a)


LOSSES = [
    pytest.param(lambda a, b, there: clip_loss(a, b, SCALE, there), slow_clip, id="clip"),
    pytest.param(lambda a, b, there: siglip_loss(a, b, SCALE, BIAS, there), slow_siglip, id="siglip"),
]


@pytest.mark.parametrize(("fast", "slow"), LOSSES)
def test_losses_are_those_of_the_papers(fast, slow) -> None:
    a, b = sides()
    torch.testing.assert_close(fast(a, b, torch.ones(9, dtype=torch.bool)), slow(a, b))


@pytest.mark.parametrize(("fast", "slow"), LOSSES)
def test_a_row_without_a_side_counts_nothing(fast, slow) -> None:
    a, b = sides()
    there = torch.tensor([True, False, True, True, False, True, True, True, True])
    loss = fast(a, b, there)
    torch.testing.assert_close(loss, slow(a[there], b[there]))
    loss.backward()
    assert a.grad is not None
    assert not a.grad[~there].any()
    assert a.grad[there].any(dim=1).all()


@pytest.mark.parametrize(("fast", "slow"), LOSSES)
def test_rows_made_a_few_at_a_time_change_nothing(fast, slow, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = sides()
    there = torch.ones(9, dtype=torch.bool)
    whole = fast(a, b, there)
    grads = torch.autograd.grad(whole, (a, b))
    monkeypatch.setattr(rows, "MOST", 9 * 2)
    parts = fast(a, b, there)
    torch.testing.assert_close(parts, whole)
    for grad, expected in zip(torch.autograd.grad(parts, (a, b)), grads, strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_very_many_rows_never_hold_the_matrix(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        scale, bias, there = (torch.ones(shape, device="meta") for shape in ((), (), len(a)))
        if method == "clip":
            return clip_loss.__wrapped__(a, b, scale, there.bool())  # type: ignore[attr-defined]
        return siglip_loss.__wrapped__(a, b, scale, bias, there.bool())  # type: ignore[attr-defined]

    matrix = 4 * 32768**2
    assert most_bytes(loss, 32768, 128) < matrix / 8
    monkeypatch.setattr(rows, "MOST", 1 << 40)
    assert most_bytes(loss, 32768, 128) > matrix, "the count sees a matrix where there is one"


@pytest.mark.parametrize(("fast", "slow"), LOSSES)
def test_a_batch_without_any_pair_gives_no_loss_and_no_nan(fast, slow) -> None:
    a, b = sides()
    loss = fast(a, b, torch.zeros(9, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert a.grad is not None
    assert not a.grad.any()
