"""TS2Vec's hierarchical contrast (Yue et al. 2022, §3.3–3.4): steps told apart in time, and samples at each step.

Legend: B samples of this process, T shared steps, D width; z1, z2 (B, T, D) the two views of the same steps.
"""

from __future__ import annotations

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
    scales = [(z1, z2, valid)]
    while scales[-1][0].shape[1] > 1:
        scales.append(_halve(*scales[-1]))
    instance = instance_contrast(scales) if alpha > 0 else 0.0
    temporal = temporal_contrast(scales) if alpha < 1 else 0.0
    return (alpha * instance + (1 - alpha) * temporal) / len(scales)  # type: ignore[return-value]


Scale = tuple[Tensor, Tensor, Tensor | None]


def _halve(z1: Tensor, z2: Tensor, valid: Tensor | None) -> Scale:
    if valid is None:
        return _pool(z1), _pool(z2), None
    least = torch.finfo(z1.dtype).min
    low1, low2 = (z.masked_fill(~valid[..., None], least) for z in (z1, z2))
    left = _pool(valid)
    return _pool(low1) * left[..., None], _pool(low2) * left[..., None], left


def _pool(x: Tensor) -> Tensor:
    """Maximum of neighbouring steps; an odd last step falls away, as in the published code."""
    even = x.shape[1] // 2 * 2
    return torch.maximum(x[:, 0:even:2], x[:, 1:even:2])


def instance_contrast(scales: list[Scale]) -> Tensor:
    """Sum over scales of: at one step, tell a sample's other view from all other samples' views (eq. 2)."""
    ours = [torch.stack([z1, z2]).transpose(1, 2) for z1, z2, _ in scales]
    counts = [part.shape[1] for part in ours]
    z = torch.cat(ours, dim=1)  # (2, S, B, D), S steps of all scales
    everyone = torch.stack([gather(z[view].transpose(0, 1)).transpose(0, 1) for view in (0, 1)])
    batch, total = z.shape[2], everyone.shape[2]
    anchors, keys = (x.transpose(0, 1).flatten(1, 2) for x in (z, everyone))  # (S, 2B, D), (S, 2RB, D)
    similarity = anchors @ keys.transpose(1, 2)
    place = torch.arange(batch, device=z.device) + rank() * batch
    own = torch.cat([place, place + total])
    rows = torch.arange(2 * batch, device=z.device)
    positive = similarity[:, rows, own.roll(batch)]
    hidden = torch.zeros(2 * batch, 2 * total, dtype=torch.bool, device=z.device)
    hidden[rows, own] = True
    weights = None
    if scales[0][2] is not None:
        known = torch.cat([valid.T for _, _, valid in scales if valid is not None])  # (S, B)
        weights = known.repeat(1, 2)
        all_known = gather(known.T.to(z.dtype)).T.bool().repeat(1, 2)
        hidden = hidden | ~all_known[:, None, :]
    lost = similarity.masked_fill(hidden, torch.finfo(z.dtype).min).logsumexp(dim=2) - positive
    return _mean_by_scale(lost, weights, counts)


def _mean_by_scale(lost: Tensor, weights: Tensor | None, counts: list[int]) -> Tensor:
    """Sum over scales of the mean of `lost` (S, A) over a scale's steps and anchors, weighted over all processes."""
    if weights is None:
        share = torch.cat([lost.new_full((count,), 1 / count) for count in counts])
        return (lost.mean(dim=1) * share).sum()
    scale = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(lost.device)
    sums = torch.zeros(2, len(counts), device=lost.device, dtype=lost.dtype)
    sums = sums.index_add(1, scale, torch.stack([(lost * weights).sum(dim=1), weights.sum(dim=1).to(lost.dtype)]))
    return (sums[0] / (all_sum(sums[1]) / world_size()).clamp_min(1e-9)).sum()


def temporal_contrast(scales: list[Scale]) -> Tensor:
    """Sum over scales of: in one sample, tell a step's other view from all other steps of both views (eq. 1)."""
    total = scales[0][0].new_zeros(())
    for z1, z2, valid in scales:
        if z1.shape[1] == 1:
            continue  # one step has nothing to be told from
        z = torch.cat([z1, z2], dim=1)
        similarity = z @ z.transpose(1, 2)
        positive = (z1 * z2).sum(dim=2)
        least = torch.finfo(z.dtype).min
        similarity.diagonal(dim1=1, dim2=2).fill_(least)
        if valid is None:
            total = total + similarity.logsumexp(dim=2).mean() - positive.mean()
            continue
        both = valid.repeat(1, 2)
        lost = similarity.masked_fill(~both[:, None], least).logsumexp(dim=2) - positive.repeat(1, 2)
        count = (all_sum(both.sum().to(z.dtype)) / world_size()).clamp_min(1)
        total = total + (lost * both).sum() / count
    return total
