"""Contrastive losses against references written term by term."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from memory import most_bytes
from torch import Tensor

from labelfree.losses import rows
from labelfree.losses.contrastive import across_views, among_instances, info_nce, logistic_triplets, nt_xent


def slow_nt_xent(
    a: Tensor, b: Tensor, temperature: float, group: list[int] | None = None, decoupled: bool = False
) -> Tensor:
    z = [v / v.norm() for v in (*a, *b)]
    count = len(a)
    total = torch.zeros(())
    for i in range(2 * count):
        others = [k for k in range(2 * count) if k != i]
        positives = [(i + count) % (2 * count)]
        if group is not None and group[i % count] >= 0:
            positives = [k for k in others if group[k % count] == group[i % count]]
        rivals = [k for k in others if k not in positives] if decoupled else others
        denominator = sum(torch.exp(z[i] @ z[k] / temperature) for k in rivals)
        terms = [-torch.log(torch.exp(z[i] @ z[k] / temperature) / denominator) for k in positives]
        total = total + sum(terms) / len(terms)
    return total / (2 * count)


def check(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, slow)
    for got, expected in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(got, expected)


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.fixture(params=["together", "a few rows at a time"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities are all made at once, or for two queries at a time."""
    if request.param != "together":
        monkeypatch.setattr(rows, "MOST", 30)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("group", [None, [0, 1, 0, -1, -1, 1, 0]])
def test_nt_xent_equals_its_definition_in_value_and_gradient(group: list[int] | None, decoupled: bool) -> None:
    inputs = random((7, 5), (7, 5))
    fast = nt_xent(*inputs, 0.3, None if group is None else torch.tensor(group), decoupled)
    check(fast, slow_nt_xent(*inputs, 0.3, group, decoupled), inputs)


def test_nt_xent_of_very_many_samples_never_holds_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, matrix = partial(nt_xent.__wrapped__, temperature=0.2), 4 * (2 * 32768) ** 2  # type: ignore[attr-defined]
    assert most_bytes(loss, 32768, 128) < matrix / 30
    monkeypatch.setattr(rows, "MOST", 1 << 40)
    assert most_bytes(loss, 32768, 128) > matrix, "the count sees a matrix where there is one"


def test_nt_xent_leaves_a_sample_out_of_its_own_negatives() -> None:
    same = torch.ones(1, 4)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(0, abs=1e-6)
    apart = torch.eye(4)
    # Each query has its positive at cosine 1 and six others at 0.
    assert nt_xent(apart, apart, 1.0).item() == pytest.approx(math.log(math.e + 6) - 1, abs=1e-6)


def test_nt_xent_keeps_its_digits_under_autocast() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nt_xent(a, b, 0.05)
    torch.testing.assert_close(mixed, nt_xent(a, b, 0.05), rtol=0, atol=0)


def test_info_nce_equals_its_definition_and_ignores_what_is_excluded() -> None:
    torch.manual_seed(0)
    q, positive = torch.randn(2, 3, 4, 6)
    negatives = torch.randn(9, 6)
    excluded = torch.rand(3, 4, 9) < 0.4
    losses = info_nce(q, positive, negatives, excluded, 0.7)
    for b in range(3):
        for m in range(4):
            match = torch.exp(q[b, m] @ positive[b, m] / 0.7)
            rest = sum(torch.exp(q[b, m] @ negatives[p] / 0.7) for p in range(9) if not excluded[b, m, p])
            torch.testing.assert_close(losses[b, m], -torch.log(match / (match + rest)))
    alone = info_nce(q, positive, negatives, torch.ones(1, 1, 9, dtype=torch.bool))
    torch.testing.assert_close(alone, torch.zeros(3, 4))


def slow_search(q: Tensor, k: Tensor, own: list[int], older: list[tuple[Tensor, int]], temperature: float) -> Tensor:
    """`older`: vectors of the queue, and whose they are."""
    keys = [v / v.norm() for v in k]
    terms = []
    for i, v in enumerate(q):
        others = [key for key, whose in [*zip(keys, own, strict=True), *older] if whose != own[i]]
        odds = torch.stack([torch.exp(v @ key / v.norm() / temperature) for key in [keys[i], *others]])
        terms.append(-torch.log(odds[0] / odds.sum()))
    return torch.stack(terms).mean()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("own", [[0, 1, 2, 3, 4, 5], [7, 2, 7, -3, -4, 2]])
def test_across_views_equals_its_definition_with_and_without_a_queue(own: list[int]) -> None:
    inputs, whose = random((6, 5), (6, 5)), torch.tensor(own)
    queue = F.normalize(random((4, 5))[0].detach(), dim=1)
    check(across_views(*inputs, 0.3, whose), slow_search(*inputs, own, [], 0.3), inputs)
    owner = [9, -1, 2, -3]
    older = [(queue[n], owner[n]) for n in (0, 2, 3)]
    check(across_views(*inputs, 0.3, whose, queue, torch.tensor(owner)), slow_search(*inputs, own, older, 0.3), inputs)
    empty = torch.full((4,), -1)
    check(across_views(*inputs, 0.3, whose, queue, empty), slow_search(*inputs, own, [], 0.3), inputs)


@pytest.mark.usefixtures("held")
def test_among_instances_equals_its_definition() -> None:
    (q,) = random((6, 5))
    memory = F.normalize(random((9, 5))[0].detach(), dim=1)
    index, drawn = torch.tensor([3, 1, 0, 8, 4, 5]), torch.tensor([0, 2, 4, 6, 7])
    loss = among_instances(q, memory[index], memory[drawn], index[:, None] == drawn, 0.3)
    terms = []
    for v, own in zip(q, index.tolist(), strict=True):
        entries = [own, *(other for other in drawn.tolist() if other != own)]
        odds = torch.stack([torch.exp(v @ memory[n] / v.norm() / 0.3) for n in entries])
        terms.append(-torch.log(odds[0] / odds.sum()))
    check(loss, torch.stack(terms).mean(), [q])


def test_logistic_triplets_equal_their_definition() -> None:
    inputs = random((4, 3), (4, 3), (4, 2, 3))
    a, b, negatives = inputs
    counted = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    terms = []
    for i in range(4):
        terms.append(-torch.log(torch.sigmoid(a[i] @ b[i])))
        apart = [
            torch.log(torch.sigmoid(-a[i] @ n)) for n, counts in zip(negatives[i], counted[i], strict=True) if counts
        ]
        terms[-1] = terms[-1] - sum(apart) / max(1, len(apart))
    check(logistic_triplets(a, b, negatives, counted), torch.stack(terms).mean(), inputs)
