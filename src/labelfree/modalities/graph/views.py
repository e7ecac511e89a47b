"""Augmentations of graphs, batched, with parameters per sample.

Legend: B samples, N nodes, E edges of a batch; edges (B, E, 2) are node places, -1 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw


def real_nodes(batch: Batch) -> Tensor | None:
    """(B, N) bool, true where there is a node (no padding, and not dropped); None where all are there."""
    kept = batch.extra.get("kept")
    if batch.lengths is None:
        return kept
    inside = torch.arange(batch.data.shape[1], device=batch.data.device) < batch.lengths[:, None]
    return inside if kept is None else inside & kept


def both_ways(edges: Tensor) -> Tensor:
    """(B, E, 2) → (B, 2E, 2): from and to."""
    return torch.cat([edges, edges.flip(2)], dim=1)


def adjacency(batch: Batch) -> Tensor:
    """(B, N, N) float32 with 1 where two nodes are linked; for graphs of some hundred nodes."""
    edges, nodes = both_ways(batch.extra["edges"]), batch.data.shape[1]
    # Edges that are none fall into a row and column beyond the last node.
    place = torch.where(edges < 0, nodes, edges)
    flat = place[..., 0] * (nodes + 1) + place[..., 1]
    square = torch.zeros(len(edges), (nodes + 1) ** 2, device=edges.device).scatter_(1, flat, 1.0)
    return square.view(-1, nodes + 1, nodes + 1)[:, :nodes, :nodes]


def one_of(views: Sequence[Batch], draw: Draw) -> Batch:
    """For each sample one of several views of it, drawn."""
    which = draw.integers("change", len(views))

    def pick(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))[which, torch.arange(len(which), device=which.device)]

    extra = {**views[0].extra, **{key: pick([view.extra[key] for view in views]) for key in ("edges", "kept")}}
    return views[0].with_(data=pick([view.data for view in views]), extra=extra)


def drop_edges(batch: Batch, draw: Draw, share: float) -> Batch:
    """Leave out a share of the edges."""
    edges = batch.extra["edges"]
    left = edges.masked_fill(draw.bernoulli("edges", share, edges.shape[1])[..., None], -1)
    return batch.with_(extra={**batch.extra, "edges": left})


def everywhere(batch: Batch) -> Tensor:
    """(B, N) bool: all nodes."""
    return torch.ones(batch.data.shape[:2], dtype=torch.bool, device=batch.data.device)


def only_nodes(batch: Batch, kept: Tensor) -> Batch:
    """Leave out nodes where `kept` (B, N) is false: their edges go, and their place stays as padding."""
    edges, kept = batch.extra["edges"], kept & batch.extra.get("kept", kept)
    both = kept.gather(1, edges.clamp_min(0).flatten(1)).view(edges.shape).all(dim=2)
    extra = {**batch.extra, "edges": edges.masked_fill(~both[..., None], -1), "kept": kept}
    return batch.with_(data=batch.data * kept[..., None], extra=extra)


def drop_nodes(batch: Batch, draw: Draw, share: float, roots: int) -> Tensor:
    """(B, N) bool: nodes that stay; the first `roots` always do, and at least one node."""
    kept = ~draw.bernoulli("nodes", share, batch.data.shape[1])
    kept[:, : max(roots, 1)] = True
    return kept


def walk(batch: Batch, draw: Draw, steps: int, roots: int) -> Tensor:
    """(B, N) bool: nodes that a random walk visits (Qiu et al. 2020, "GCC", §3.2), from the first root, or from any
    node where there is none.
    """
    edges, count = both_ways(batch.extra["edges"]), batch.data.shape[1]
    lengths = torch.full((len(batch),), count, device=edges.device) if batch.lengths is None else batch.lengths
    here = torch.zeros_like(lengths) if roots else (draw.uniform("start") * lengths).long()
    visited = torch.zeros(len(batch), count, dtype=torch.bool, device=edges.device).scatter_(1, here[:, None], True)
    visited[:, :roots] = True
    half = edges.shape[1] // 2
    for step in range(steps):
        # An edge has the same number whatever is padded behind it, in either direction.
        score = draw.uniform(f"walk {step}", half, 2).transpose(1, 2).flatten(1)
        best, place = score.masked_fill(edges[..., 0] != here[:, None], -1).max(dim=1)
        there = edges[..., 1].gather(1, place[:, None])[:, 0]
        here = torch.where(best < 0, here, there)
        visited.scatter_(1, here[:, None], True)
    return visited


def mask_features(x: Tensor, draw: Draw, share: float) -> Tensor:
    """Blank a share of the features, the same for all nodes of a sample (Zhu et al. 2020, "GRACE", §3.2)."""
    return x.masked_fill(draw.bernoulli("features", share, 1, x.shape[2]), 0)


def mask_nodes(x: Tensor, draw: Draw, share: float) -> Tensor:
    """Blank all features of a share of the nodes (You et al. 2020, "GraphCL", §3.1)."""
    return x.masked_fill(draw.bernoulli("masked nodes", share, x.shape[1])[..., None], 0)


def shuffled(batch: Batch, draw: Draw) -> Tensor:
    """(B, N) places: the nodes of each sample in another order, padding where it was."""
    score = draw.uniform("shuffle", batch.data.shape[1])
    valid = real_nodes(batch)
    if valid is None:
        return score.argsort(dim=1)
    order = (score + 2.0 * ~valid).argsort(dim=1)
    rank = (valid.cumsum(dim=1) - 1).clamp_min(0)
    return torch.where(valid, order.gather(1, rank), torch.arange(valid.shape[1], device=order.device))
