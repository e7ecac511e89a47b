"""Graphs for the shared transformer: a token a node, which knows where its neighbours stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Features, mean_of
from labelfree.encoders.trunk import Trunk, positions
from labelfree.modalities.graph.views import adjacency, real_nodes


class GraphStem(nn.Module):
    """Nodes of a view → tokens (Kim et al. 2022, "Pure Transformers are Powerful Graph Learners", §3).

    A node is identified by its place, as any token of the trunk; here it is told the mean of the places that one and
    two steps of a walk lead to, so that attention can find its neighbours, and its degree.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.values = nn.Linear(features, dim)
        self.structure = nn.Linear(2 * dim + 1, dim, bias=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        tokens = self.values(batch.data.nan_to_num())
        linked = adjacency(batch).to(tokens.dtype)
        degree = linked.sum(dim=2, keepdim=True)
        step = linked / degree.clamp_min(1)
        once = step @ positions(tokens)
        around = torch.cat([once, step @ once, degree.log1p()], dim=2)
        return tokens + self.structure(around), real_nodes(batch)


class GraphTrunk(Trunk):
    """The shared transformer on graphs; `pooled` is the mean of the first `roots` nodes, or of all where that is 0."""

    def __init__(self, *args: Any, roots: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.roots = roots

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        found = super().forward(batch, mask, kept)
        assert found.tokens is not None
        return replace(found, pooled=pool_nodes(found.tokens, found.valid, self.roots))


def pool_nodes(tokens: Tensor, valid: Tensor | None, roots: int, total: bool = False) -> Tensor:
    """(B, N, D) → (B, D): the mean of the roots; without any, the mean of all valid nodes, or their `total`."""
    if roots:
        return tokens[:, :roots].mean(dim=1)
    if not total:
        return mean_of(tokens, valid)
    return tokens.sum(dim=1) if valid is None else (tokens * valid[..., None]).sum(dim=1)
