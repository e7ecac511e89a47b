"""The hierarchical contrast against the published one, written out slowly."""

from __future__ import annotations

import pytest
import torch
from processes import average_gradients, together
from torch import Tensor, nn

from labelfree.distributed import all_sum, world_size
from labelfree.losses.hierarchical import hierarchical_contrast


def told_apart(anchor: Tensor, positive: Tensor, others: list[Tensor]) -> Tensor:
    """-log softmax of the positive among it and the others, by dot products."""
    scores = torch.stack([anchor @ positive, *(anchor @ other for other in others)])
    return scores.logsumexp(dim=0) - scores[0]


def reference(z1: Tensor, z2: Tensor, lengths: list[int], alpha: float) -> Tensor:
    """Every anchor, every negative, every scale in a loop; samples are the steps they have."""
    views = [[z[b, :n] for b, n in enumerate(lengths)] for z in (z1, z2)]
    steps, losses = z1.shape[1], []
    while True:
        instance, temporal = [], []
        for view in (0, 1):
            mine, its = views[view], views[1 - view]
            for b, series in enumerate(mine):
                for t in range(len(series)):
                    rivals = [v[j][t] for v in (mine, its) for j in range(len(mine)) if j != b and t < len(v[j])]
                    instance.append(told_apart(series[t], its[b][t], rivals))
                    moments = [v[b][s] for v in (mine, its) for s in range(len(series)) if s != t]
                    temporal.append(told_apart(series[t], its[b][t], moments))
        scale = alpha * torch.stack(instance).mean()
        losses.append(scale + (1 - alpha) * torch.stack(temporal).mean() if steps > 1 else scale)
        if steps == 1:
            return torch.stack(losses).mean()
        steps //= 2
        views = [[halved(series, steps) for series in view] for view in views]


def halved(series: Tensor, most: int) -> Tensor:
    """Maximum of neighbours; a last one without a neighbour inside the padding stays, one without any falls away."""
    pairs = [series[t : t + 2].amax(dim=0) for t in range(0, len(series), 2)][:most]
    return torch.stack(pairs) if pairs else series[:0]


@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0])
@pytest.mark.parametrize(("batch", "steps"), [(3, 13), (1, 6), (4, 1), (2, 8)])
def test_loss_and_gradient_are_the_published_ones(batch: int, steps: int, alpha: float) -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(batch, steps, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = reference(z1, z2, [steps] * batch, alpha)
    found = hierarchical_contrast(z1, z2, alpha)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, (z1, z2), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(torch.autograd.grad(3 * found, (z1, z2)), tuple(3 * grad for grad in wanted))


def test_padding_is_neither_anchor_nor_negative() -> None:
    torch.manual_seed(0)
    lengths = [12, 7, 3]
    z1, z2 = (torch.randn(3, 12, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    valid = torch.arange(12) < torch.tensor(lengths)[:, None]
    expected = reference(z1, z2, lengths, 0.5)
    found = hierarchical_contrast(z1, z2, 0.5, valid)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, (z1, z2))
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (z1, z2)))
    assert not grads[0][~valid].any()


def test_large_similarities_stay_finite() -> None:
    z = (300 * torch.randn(2, 9, 5)).requires_grad_()
    loss = hierarchical_contrast(z, z * 1.5)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def losses_and_gradients(rank: int, padded: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    size = 4 // world_size()
    mine = slice(rank * size, (rank + 1) * size)
    net = nn.Linear(3, 5)
    x1, x2 = torch.randn(2, 4, 11, 3)[:, mine]
    valid = (torch.arange(11) < torch.tensor([11, 4, 9, 2])[:, None])[mine] if padded else None
    loss = hierarchical_contrast(net(x1), net(x2), 0.5, valid)
    loss.backward()
    if world_size() > 1:
        average_gradients(net)
    return {"loss": all_sum(loss.detach()) / world_size(), "weight": net.weight.grad, "bias": net.bias.grad}


def full_and_padded(rank: int) -> dict[str, Tensor]:
    both = {padded: losses_and_gradients(rank, padded) for padded in (False, True)}
    return {f"{name}, padded: {padded}": value for padded, found in both.items() for name, value in found.items()}


def test_two_processes_are_one() -> None:
    one = full_and_padded(0)
    for other in together(full_and_padded):
        for name, expected in one.items():
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-5)
