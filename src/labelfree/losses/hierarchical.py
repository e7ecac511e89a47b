"""TS2Vec's hierarchical contrast (Yue et al. 2022, §3.3–3.4): steps told apart in time, and samples at each step.

The loss needs (2T)² similarities a sample at every scale. Here loss and gradient are made in one sweep, each block of
similarities once and in place, so that none of them waits for a backward pass.

Legend: B samples of this process, R processes, T shared steps, D width. z (2B, T, D) holds both views of the steps:
z[b] and z[B + b] are sample b.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from labelfree.distributed import all_sum, gather, rank, world_size
from labelfree.losses.precision import full_precision


def hierarchical_contrast(z1: Tensor, z2: Tensor, alpha: float = 0.5, valid: Tensor | None = None) -> Tensor:
    """Mean, over all scales, of α · instance contrast + (1 - α) · temporal contrast; scale by scale, time is halved by
    max-pooling until one step is left.

    Args:
        z1, z2: (B, T, D) features of the same steps in two views.
        alpha: weight of the instance contrast.
        valid: (B, T) bool, false where a step is padding: it is neither anchor nor negative.

    Returns:
        Scalar: this process's part of the loss of the global batch.
    """
    if valid is None and world_size() > 1:  # others may have padding, and all have to take part in the same sums
        valid = torch.ones(z1.shape[:2], dtype=torch.bool, device=z1.device)
    device = z1.device.type
    quick = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _contrast(z1, z2, alpha, valid, quick)


#: Steps from which half precision pays for the gradient's products.
_LONG = 128


@full_precision
def _contrast(z1: Tensor, z2: Tensor, alpha: float, valid: Tensor | None, quick: torch.dtype | None) -> Tensor:
    """The loss in float32; `quick` is the precision of the gradient's matrix products, where it is lower."""
    known = None if valid is None else valid.repeat(2, 1)
    loss: Tensor = _Hierarchy.apply(torch.cat([z1, z2]), alpha, known, quick)
    return loss


class _Hierarchy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, alpha: float, known: Tensor | None, quick: torch.dtype | None) -> Tensor:
        scales, winners = [(z, known)], []
        while scales[-1][0].shape[1] > 1:
            halved, left, early = _halve(*scales[-1])
            scales.append((halved, left))
            winners.append(early)
        grads = [torch.zeros_like(z) for z, _ in scales]
        total = z.new_zeros(())
        for (z, known), grad in zip(scales, grads, strict=True):
            weights = _anchor_weights(z, known) / len(scales)
            if alpha > 0:
                total += instance_contrast(z, weights * alpha, known, grad)
            if alpha < 1 and z.shape[1] > 1:  # a single step has nothing to be told from
                total += temporal_contrast(z, weights * (1 - alpha), known, grad, quick)
        for (below, above), early in zip(reversed(list(pairwise(grads))), reversed(winners), strict=True):
            _spread(above, early, below)
        ctx.save_for_backward(grads[0])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None, None


def _halve(z: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Maximum of neighbouring known steps (an odd last step falls away, as in the published code), which of them are
    known, and 1 where the earlier was taken.
    """
    first, second = _pairs(z)
    if known is None:
        return torch.maximum(first, second), None, (first >= second).to(z.dtype)
    of_first, of_second = (part[..., None] for part in _pairs(known))
    early = of_first & ((first >= second) | ~of_second)
    return torch.where(early, first, second), (of_first | of_second)[..., 0], early.to(z.dtype)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    even = x.shape[1] // 2 * 2
    return x[:, 0:even:2], x[:, 1:even:2]


def _spread(above: Tensor, early: Tensor, below: Tensor) -> None:
    """Add the gradient of a halved series to the steps it was taken from."""
    first, second = _pairs(below)
    share = above * early
    first.add_(share)
    second.add_(above).sub_(share)


def _anchor_weights(z: Tensor, known: Tensor | None) -> Tensor:
    """(2B, T) weights: equal where `known`, their mean over processes sums to 1."""
    if known is None:
        return z.new_full(z.shape[:2], 1 / (z.shape[0] * z.shape[1]))
    weights = known.to(z.dtype)
    return weights / (all_sum(weights.sum()) / world_size()).clamp_min(1)


def instance_contrast(z: Tensor, weights: Tensor, known: Tensor | None, grad: Tensor) -> Tensor:
    """At one step, tell a sample's other view from all other samples' views (eq. 2).

    Args:
        z: (2B, T, D).
        weights: (2B, T) of each anchor.
        known: (2B, T) bool, false where there is padding; None where there is none.
        grad: (2B, T, D) to which the loss's gradient is added.

    Returns:
        Scalar: the weighted sum over anchors.
    """
    anchors, weights = z.transpose(0, 1), weights.t()[..., None]  # (T, 2B, ·)
    keys = _everyone(z).transpose(0, 1)
    mine, all_of_them = z.shape[0] // 2, keys.shape[1] // 2
    rows = torch.arange(2 * mine, device=z.device)
    own = rows + rank() * mine + (rows >= mine) * (all_of_them - mine)
    other = own.roll(mine)
    similarity = anchors @ keys.transpose(1, 2)
    positive = similarity[:, rows, other]
    least = torch.finfo(z.dtype).min
    similarity[:, rows, own] = least
    if known is not None:
        similarity.masked_fill_(~_everyone(known.to(z.dtype)).t().bool()[:, None], least)
    total = similarity.logsumexp(dim=2, keepdim=True)
    pull = similarity.sub_(total).exp_().mul_(weights)
    pull[:, rows, other] -= weights[..., 0]
    if world_size() == 1:
        grad += ((pull + pull.transpose(1, 2)) @ anchors).transpose(0, 1)
    else:
        back = pull.transpose(1, 2) @ anchors
        dist.all_reduce(back)
        grad += (pull @ keys + back[:, own]).transpose(0, 1)
    return ((total[..., 0] - positive) * weights[..., 0]).sum()


def _everyone(x: Tensor) -> Tensor:
    """(2B, ...) → (2RB, ...): the samples of all processes, first views before second ones."""
    return x if world_size() == 1 else torch.cat([gather(half.contiguous()) for half in x.chunk(2)])


def temporal_contrast(
    z: Tensor, weights: Tensor, known: Tensor | None, grad: Tensor, quick: torch.dtype | None = None
) -> Tensor:
    """In one sample, tell a step's other view from all other steps of both views (eq. 1); arguments as above, and
    `quick`, a precision for the gradient's products where they are large.

    A sample's similarities fall into three blocks, [first, first], [second, second] and [first, second], whose
    transpose is the fourth.
    """
    half = len(z) // 2
    first, second = z[:half], z[half:]
    least = torch.finfo(z.dtype).min
    same = z @ z.transpose(1, 2)
    cross = first @ second.transpose(1, 2)
    positive = cross.diagonal(dim1=1, dim2=2).repeat(2, 1)
    same.diagonal(dim1=1, dim2=2).fill_(least)
    if known is not None:
        same.masked_fill_(~known[:, None], least)
        cross.masked_fill_(~(known[:half, :, None] & known[half:, None]), least)
    top = torch.maximum(same.amax(dim=2), torch.cat([cross.amax(dim=2), cross.amax(dim=1)]))
    same.sub_(top[:, :, None]).exp_()
    of_first = (cross - top[:half, :, None]).exp_()
    of_second = cross.sub_(top[half:, None, :]).exp_()
    total = same.sum(dim=2) + torch.cat([of_first.sum(dim=2), of_second.sum(dim=1)])
    share = weights / total
    same.mul_(share[:, :, None])
    mixed = of_first.mul_(share[:half, :, None]).addcmul_(of_second, share[half:, None, :])
    mixed.diagonal(dim1=1, dim2=2).sub_(weights[:half] + weights[half:])
    same = same + same.transpose(1, 2)
    if quick is None or z.shape[1] < _LONG:
        grad.baddbmm_(same, z)
        grad[:half].baddbmm_(mixed, second)
        grad[half:].baddbmm_(mixed.transpose(1, 2), first)
    else:
        same, mixed, z = same.to(quick), mixed.to(quick), z.to(quick)
        grad += same @ z
        grad[:half] += mixed @ z[half:]
        grad[half:] += mixed.transpose(1, 2) @ z[:half]
    return ((total.log() + top - positive) * weights).sum()
