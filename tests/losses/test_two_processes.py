"""Two and four processes give the loss, gradient and running statistics of one, at the same global batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from processes import average_gradients, together
from torch import Tensor, nn

from labelfree.distributed import all_sum, gather, weighted_mean, world_size
from labelfree.losses.barlow import redundancy
from labelfree.losses.coding_rate import coding_rate
from labelfree.losses.contrastive import across_views, nt_xent
from labelfree.losses.distillation import centred, koleo, mean_over_batch, sinkhorn, soft_cross_entropy
from labelfree.losses.pairs import clip_loss, siglip_loss
from labelfree.losses.quantised import unused_codes
from labelfree.losses.regression import cosine_regression
from labelfree.losses.sigreg import sigreg
from labelfree.losses.vicreg import vicreg_terms
from labelfree.training.batchnorm import synchronise

unit = partial(torch.nn.functional.normalize, dim=1)
QUEUE = unit(torch.arange(15.0).sin().view(3, 5))
GROUP = torch.tensor([0, 1, 0, -1, -1, 1, 0, 0])
LOSSES = {
    "nt_xent": lambda a, b, group: nt_xent(a, b, 0.2),
    "nt_xent grouped": lambda a, b, group: nt_xent(a, b, 0.2, group),
    "nt_xent decoupled": lambda a, b, group: nt_xent(a, b, 0.2, decoupled=True),
    "across views": lambda a, b, group: across_views(a, b, 0.2, group),
    "across views, queue": lambda a, b, group: across_views(a, b.detach(), 0.2, group, QUEUE, torch.tensor([3, -1, 1])),
    "redundancy": lambda a, b, group: redundancy(a, b, 0.1),
    "sigreg": lambda a, b, group: sigreg(torch.stack([a, b]), unit(QUEUE).T),
    "coding rate": lambda a, b, group: coding_rate(unit(a)),
    "invariance": lambda a, b, group: vicreg_terms(a, b).invariance,
    "variance": lambda a, b, group: vicreg_terms(a, b).variance,
    "covariance": lambda a, b, group: vicreg_terms(a, b).covariance,
    "clip": lambda a, b, group: clip_loss(unit(a), unit(b), torch.tensor(5.0), group >= 0),
    "siglip": lambda a, b, group: siglip_loss(unit(a), unit(b), torch.tensor(5.0), torch.tensor(-3.0), group >= 0),
    "cosine": lambda a, b, group: cosine_regression(a, b),
    "sinkhorn": lambda a, b, group: soft_cross_entropy(sinkhorn(a, 0.3), b).mean(),
    "sinkhorn weighted": lambda a, b, group: soft_cross_entropy(sinkhorn(a, 0.3, weight=group + 1), b).mean(),
    "centred": lambda a, b, group: soft_cross_entropy(
        centred(a.detach(), mean_over_batch(a, group + 1), 0.1), b
    ).mean(),
    "koleo": lambda a, b, group: koleo(a),
    "unused codes": lambda a, b, group: unused_codes(a.view(-1, 1, 1, 5), group[:, None] >= 0),
    "gathered twice": lambda a, b, group: (gather(a) + gather(b)).square().mean(),
    "weighted": lambda a, b, group: weighted_mean((a - b).square().mean(dim=1), group.clamp_min(0)),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    middle = nn.Sequential(nn.Unflatten(1, (4, 3)), nn.BatchNorm1d(4, momentum=None), nn.Flatten())
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), middle, nn.Linear(12, 5))


def losses_and_gradients(rank: int) -> dict[str, Tensor]:
    """Every loss through a network with batch normalisation, on this process's slice of 8 samples."""
    torch.manual_seed(0)
    size = len(GROUP) // world_size()
    mine = slice(rank * size, (rank + 1) * size)
    a, b = 3 * torch.randn(2, len(GROUP), 6)[:, mine] + 5
    found: dict[str, Tensor] = {}
    for name, loss_of in LOSSES.items():
        net = synchronise(network()) if world_size() > 1 else network()
        loss = loss_of(net(a), net(b), GROUP[mine])
        loss.backward()
        if world_size() > 1:
            average_gradients(net)
        found[f"{name}: loss"] = all_sum(loss.detach()) / world_size()
        found |= {f"{name}: gradient of {key}": p.grad for key, p in net.named_parameters()}
        found |= {f"{name}: {key}": value.clone() for key, value in net.named_buffers()}
    net.eval()
    found["evaluation"] = gather(net(a).detach())
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_losses_and_batch_normalisation_of_several_processes_are_those_of_one(world: int) -> None:
    one = losses_and_gradients(0)
    for other in together(losses_and_gradients, world=world):
        assert other.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
