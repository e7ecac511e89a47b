"""Graph networks of PyTorch Geometric as encoders: a token a node.

Legend: B samples, N nodes of a sample with padding, M nodes of all samples, E edges, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders._geometric import geometric
from labelfree.encoders.base import Encoder, Features, Hide
from labelfree.errors import LabelfreeError, nearest
from labelfree.modalities.base import Modality
from labelfree.modalities.graph.tokens import pool_nodes
from labelfree.modalities.graph.views import both_ways, real_nodes
from labelfree.needs import Need

if TYPE_CHECKING:
    from labelfree.modalities.graph import Graph

#: Width and layers, unless the name says otherwise.
SHAPES = {"gcn": (256, 2), "sage": (256, 2), "gat": (256, 2), "gin": (32, 4)}
HEADS = 4
#: Convolutions in which a node is its own neighbour.
LOOPED = ("gcn", "gat")


@dataclass(frozen=True)
class Union:
    """All graphs of a batch as one that falls apart into them.

    Attributes:
        rows: (M,) places of its nodes in (B · N).
        edges: (2, K) both ways.
        attributes: (K, A), or None.
        nodes: M, or M + 1 with a node that edges which are none lead to.
    """

    rows: Tensor
    edges: Tensor
    attributes: Tensor | None
    nodes: int

    @classmethod
    def for_kind(cls, kind: str, batch: Batch) -> Union:
        """What convolutions of this kind work on. Loops are added once for all layers; those of the data are left out
        when it is read.
        """
        graph = cls.of(batch)
        if kind not in LOOPED:
            return graph
        from torch_geometric.utils import add_self_loops

        edges, attributes = add_self_loops(graph.edges, graph.attributes, "mean", graph.nodes)
        return replace(graph, edges=edges, attributes=attributes)

    @classmethod
    def of(cls, batch: Batch) -> Union:
        """On a CPU padding is left out; on a GPU counting it would stop the host, and it is carried along."""
        count, width = batch.data.shape[:2]
        ends = both_ways(batch.extra["edges"])
        start = torch.arange(count, device=ends.device)[:, None, None] * width
        edges = torch.where(ends < 0, count * width, ends + start).flatten(0, 1).t()
        attributes = batch.extra.get("attributes")
        if attributes is not None:
            attributes = attributes.repeat(1, 2, 1).flatten(0, 1)
        rows = torch.arange(count * width, device=ends.device)
        if not counts(ends):
            return cls(rows, edges, attributes, len(rows) + 1)
        valid = real_nodes(batch)
        if valid is not None:
            rows = valid.flatten().nonzero().squeeze(1)
        place = rows.new_full((count * width + 1,), -1).index_copy(0, rows, torch.arange(len(rows)))
        edges = place[edges]
        kept = (edges >= 0).all(dim=0).nonzero().squeeze(1)
        return cls(rows, edges[:, kept], None if attributes is None else attributes[kept], len(rows))

    def take(self, x: Tensor) -> Tensor:
        """(B, N, F) → (nodes, F)."""
        found = x.flatten(0, 1)[self.rows]
        return found if len(found) == self.nodes else torch.cat([found, found.new_zeros(1, x.shape[2])])

    def put(self, h: Tensor, like: Tensor) -> Tensor:
        """(nodes, D) → (B, N, D), zeros in padding."""
        out = h.new_zeros(like.shape[0] * like.shape[1], h.shape[1]).index_copy(0, self.rows, h[: len(self.rows)])
        return out.view(*like.shape[:2], -1)


def counts(x: Tensor) -> bool:
    """Whether asking how many there are of something costs nothing."""
    return not x.is_cuda


class Layer(nn.Module):
    """One convolution over the neighbours, of the kind that its name says; edge attributes where it can use them."""

    def __init__(self, kind: str, before: int, width: int, attributes: int) -> None:
        super().__init__()
        nets = geometric()
        own = {"edge_dim": attributes} if attributes else {}
        self.attributed = bool(attributes) and kind in ("gat", "gin")
        self.kind = kind
        self.convolution: Any
        if kind == "gcn":
            self.convolution = nets.GCNConv(before, width, normalize=False)
        elif kind == "sage":
            self.convolution = nets.SAGEConv(before, width)
        elif kind == "gat":
            self.convolution = nets.GATv2Conv(before, width // HEADS, heads=HEADS, add_self_loops=False, **own)
        else:
            inner = nn.Sequential(nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
            self.convolution = nets.GINEConv(inner, **own) if attributes else nets.GINConv(inner)

    def forward(self, h: Tensor, graph: Union, weights: Tensor | None) -> Tensor:
        if weights is not None:
            return self.convolution(h, graph.edges, weights)
        if self.attributed:
            return self.convolution(h, graph.edges, graph.attributes)
        return self.convolution(h, graph.edges)


class Spread(nn.Module):
    """GraphMAE's decoder (Hou et al. 2022, §3.2): one convolution spreads what is known to hidden nodes."""

    def __init__(self, kind: str, dim: int, attributes: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.layer = Layer(kind, dim, dim, attributes)
        self.act = nn.PReLU()

    def forward(self, view: Batch, tokens: Tensor, mask: Tensor) -> Tensor:
        known = self.project(tokens).masked_fill(mask[..., None], 0)
        graph = Union.for_kind(self.layer.kind, view)
        return self.act(graph.put(self.layer(graph.take(known), graph, _weights(self.layer.kind, graph)), tokens))


def _weights(kind: str, graph: Union) -> Tensor | None:
    """(K,) symmetrically normalised weights of edges (Kipf & Welling 2017, §2); made once for all layers."""
    if kind != "gcn":
        return None
    degree = torch.zeros(graph.nodes, device=graph.edges.device).index_add_(
        0, graph.edges[1], torch.ones(1, device=graph.edges.device).expand(graph.edges.shape[1])
    )
    scale = degree.rsqrt()
    return scale[graph.edges[0]] * scale[graph.edges[1]]


class PyG(Encoder):
    """`pyg:gcn`, `pyg:sage`, `pyg:gat`, `pyg:gin`: graph networks of PyTorch Geometric; `pyg:gcn-128x2` is 128 wide and
    2 layers deep. Between layers stand layer norms and PReLU, so that no sample depends on another. GIN joins the
    outputs of all its layers, and sums over the nodes of a graph (Xu et al. 2019, "How Powerful are Graph Neural
    Networks?", §4).
    """

    name = "pyg"
    can = frozenset({Need.TOKENS, Need.MASK})
    hides: tuple[Hide, ...] = ("replace",)
    modalities = frozenset({"graph"})

    def __init__(self, kind: str, features: int, attributes: int, width: int, depth: int, roots: int) -> None:
        super().__init__()
        self.kind, self.roots, self.attributes = kind, roots, attributes
        self.joined = kind == "gin"
        self.dim = width * depth if self.joined else width
        self.mask_token = nn.Parameter(torch.zeros(features))
        sizes = [features] + [width] * depth
        # GINE adds an edge's vector to a node's, so that they are of one width.
        self.project = nn.Linear(features, width) if kind == "gin" else None
        sizes[0] = width if kind == "gin" else features
        self.blocks = nn.ModuleList(Layer(kind, a, b, attributes) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.acts = nn.ModuleList(nn.PReLU() for _ in range(depth))

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        found = re.fullmatch(r"([a-z]+)(?:-(\d+)(?:x(\d+))?)?", variant or "gcn")
        kind = found[1] if found else variant
        if found is None or kind not in SHAPES:
            raise LabelfreeError(
                f"There is no encoder 'pyg:{variant}': there are {', '.join(SHAPES)}.", nearest(kind, SHAPES)
            )
        width, depth = (int(given or usual) for given, usual in zip(found.groups()[1:], SHAPES[kind], strict=True))
        if width < 1 or depth < 1 or (kind == "gat" and width % HEADS):
            raise LabelfreeError(
                f"'pyg:{variant}' is {width} wide and {depth} deep.",
                f"Both start at 1; gat's width is a multiple of {HEADS}.",
            )
        graph: Graph = modality  # type: ignore[assignment]
        return cls(kind, graph.width, graph.edge_width, width, depth, graph.roots)

    @classmethod
    def variants(cls) -> list[str]:
        return list(SHAPES)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        x = batch.data.nan_to_num()
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        graph = Union.for_kind(self.kind, batch)
        weights = _weights(self.kind, graph)
        h = graph.take(x)
        if self.project is not None:
            h = self.project(h)
        after = []
        for layer, norm, act in zip(self.blocks, self.norms, self.acts, strict=True):
            h = act(norm(layer(h, graph, weights)))
            after.append(h)
        tokens, valid = graph.put(torch.cat(after, dim=1) if self.joined else h, x), real_nodes(batch)
        return Features(pool_nodes(tokens, valid, self.roots, total=self.joined), tokens, valid)

    def spread(self) -> nn.Module:
        return Spread(self.kind, self.dim, self.attributes)

    def layers(self) -> list[list[nn.Parameter]]:
        first = [self.mask_token, *(self.project.parameters() if self.project is not None else ())]
        rows = zip(self.blocks, self.norms, self.acts, strict=True)
        return [first, *([p for part in row for p in part.parameters()] for row in rows)]
