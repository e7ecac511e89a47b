"""TS2Vec's hierarchical contrast (Yue et al. 2022, §3.3–3.4): steps told apart in time, and samples at each step.

Legend: B samples of this process, T shared steps, D width. z (T, 2B, D) holds both views of the same steps, time first:
z[:, b] and z[:, B + b] are sample b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labelfree.distributed import all_sum, gather, rank, world_size
from labelfree.losses.precision import full_precision


@full_precision
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
    z = torch.cat([z1.transpose(0, 1), z2.transpose(0, 1)], dim=1)
    known = None if valid is None else valid.t().repeat(1, 2)
    scales = [(z, known)]
    while len(scales[-1][0]) > 1:
        scales.append(_halve(*scales[-1]))
    total = z.new_zeros(())
    if alpha > 0:
        total = total + alpha * instance_contrast(scales)
    if alpha < 1:
        # One step has nothing to be told from: its scale adds nothing, but counts in the mean.
        total = total + (1 - alpha) * sum((temporal_contrast(*scale) for scale in scales[:-1]), z.new_zeros(()))
    return total / len(scales)


#: z (T, 2B, D), and (T, 2B) bool: which are no padding, or None where all are.
Scale = tuple[Tensor, Tensor | None]


def _halve(z: Tensor, known: Tensor | None) -> Scale:
    if known is None:
        return _pool(z), None
    left = _pool(known)
    hidden = z.masked_fill(~known[..., None], torch.finfo(z.dtype).min)
    return _pool(hidden).masked_fill(~left[..., None], 0.0), left


def _pool(x: Tensor) -> Tensor:
    """Maximum of neighbouring steps; an odd last step falls away, as in the published code."""
    even = len(x) // 2 * 2
    return torch.maximum(x[0:even:2], x[1:even:2])


def instance_contrast(scales: list[Scale]) -> Tensor:
    """Sum over scales of: at one step, tell a sample's other view from all other samples' views (eq. 2)."""
    batch, total = scales[0][0].shape[1] // 2, scales[0][0].shape[1] // 2 * world_size()
    device = scales[0][0].device
    similarity = torch.cat([z @ _everyone(z).transpose(1, 2) for z, _ in scales])  # (S, 2B, 2RB), S steps of all scales
    rows = torch.arange(2 * batch, device=device)
    own = rows + rank() * batch + (rows >= batch) * (total - batch)
    positive = similarity[:, rows, own.roll(batch)]
    hidden = torch.zeros(2 * batch, 2 * total, dtype=torch.bool, device=device)
    hidden[rows, own] = True
    weights = torch.cat([_anchor_weights(z, known) for z, known in scales])
    if scales[0][1] is not None:
        known = torch.cat([part for _, part in scales if part is not None])
        hidden = hidden | ~_everyone(known.to(similarity.dtype)).bool()[:, None, :]
    lost = similarity.masked_fill(hidden, torch.finfo(similarity.dtype).min).logsumexp(dim=2) - positive
    return (lost * weights).sum()


def _everyone(z: Tensor) -> Tensor:
    """(T, 2B, ...) → (T, 2RB, ...): the samples of all processes, first views before second ones."""
    if world_size() == 1:
        return z
    views = z.unflatten(1, (2, -1)).movedim(2, 0)  # (B, T, 2, ...)
    return gather(views.contiguous()).movedim(0, 2).flatten(1, 2)


def _anchor_weights(z: Tensor, known: Tensor | None) -> Tensor:
    """(T, 2B) weights: their sum over processes is the number of processes, equal where `known`."""
    if known is None:
        return z.new_full(z.shape[:2], 1 / (z.shape[0] * z.shape[1]))
    weights = known.to(z.dtype)
    return weights / (all_sum(weights.sum()) / world_size()).clamp_min(1)


def temporal_contrast(z: Tensor, known: Tensor | None = None) -> Tensor:
    """In one sample, tell a step's other view from all other steps of both views (eq. 1)."""
    weights = _anchor_weights(z, known).t()
    loss: Tensor = _Temporal.apply(z, weights, None if known is None else known.t())
    return loss


class _Temporal(torch.autograd.Function):
    """Σ weight · (log Σ over other steps of exp(similarity) - similarity with the other view).

    The (2T)² similarities of a sample fall into three blocks, [first, first], [second, second] and [first, second],
    whose transpose is the fourth. The gradient is made in the forward pass, so that none of them outlives it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor, known: Tensor | None) -> Tensor:
        """z (T, 2B, D), weights (2B, T), known (2B, T) bool or None → scalar."""
        views = z.transpose(0, 1)
        half = len(views) // 2
        first, second = views[:half], views[half:]
        least = torch.finfo(z.dtype).min
        same = views @ views.transpose(1, 2)
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
        loss = ((total.log() + top - positive) * weights).sum()
        if ctx.needs_input_grad[0]:
            share = weights / total
            same.mul_(share[:, :, None])
            mixed = of_first.mul_(share[:half, :, None]).add_(of_second.mul_(share[half:, None, :]))
            mixed.diagonal(dim1=1, dim2=2).sub_(weights[:half] + weights[half:])
            grad = (same + same.transpose(1, 2)) @ views
            grad[:half].baddbmm_(mixed, second)
            grad[half:].baddbmm_(mixed.transpose(1, 2), first)
            ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grad,) = ctx.saved_tensors
        return (grad * grads[0]).transpose(0, 1), None, None
