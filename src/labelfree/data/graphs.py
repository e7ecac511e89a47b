"""Graphs as arrays: one or many, joined; neighbourhoods sampled, and features of structure, without a loop over nodes.

Edges have no direction here: each unordered pair of nodes stands once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import sparse

#: Neighbours of a node that are looked through for edges inside a neighbourhood.
LOOK = 32
#: Columns of positions that are made at a time.
TOGETHER = 32


@dataclass(frozen=True)
class Graphs:
    """N nodes, E edges, G graphs, one after another.

    Attributes:
        features: (N, F) float32, NaN where missing; F may be 0.
        edges: (E, 2) int64 node numbers, the lower first.
        attributes: (E, A) float32 of the edges; A may be 0.
        first: (G + 1,) int64 first node of each graph, and N.
        first_edge: (G + 1,) int64 first edge of each graph, and E.
        code: (N,) uint64 that names each node, the same in every source.
        names: (N,) what people call the nodes, or None where they have numbers only.
        columns: what could be a label or group, by level ("node", "edge", "graph") and name.
        broken: why a graph cannot be used, by its number.
        facts: words about what was found.
    """

    features: np.ndarray
    edges: np.ndarray
    attributes: np.ndarray
    first: np.ndarray
    first_edge: np.ndarray
    code: np.ndarray
    names: np.ndarray | None = None
    columns: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    broken: Mapping[int, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """G."""
        return len(self.first) - 1

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.first[-1])

    @cached_property
    def neighbours(self) -> Neighbours:
        return Neighbours.of(self.edges, self.nodes)


@dataclass(frozen=True)
class Neighbours:
    """Adjacency lists: those of node v are `target[first[v]:first[v + 1]]`, by the edges `edge[...]`."""

    first: np.ndarray
    target: np.ndarray
    edge: np.ndarray

    @classmethod
    def of(cls, edges: np.ndarray, nodes: int) -> Neighbours:
        """Lists of (E, 2) edges, both ways."""
        source, target = np.concatenate([edges, edges[:, ::-1]]).T
        order = np.argsort(source, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=nodes))]).astype(np.int64)
        return cls(first, target[order], np.tile(np.arange(len(edges)), 2)[order])

    @cached_property
    def degree(self) -> np.ndarray:
        """(N,) int64."""
        return np.diff(self.first)

    def draw(self, nodes: np.ndarray, key: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `most` neighbours of each of the (M,) nodes, without repeats; all where there are no more.

        One is drawn from each of `most` stretches of the list, as equal as can be, by a hash of `key` (M,) uint64 and
        of the stretch.

        Returns:
            rows (K,) into `nodes`, places (K,) in `target` and `edge`.
        """
        degree = self.degree[nodes][:, None]
        slot = np.arange(min(most, int(degree.max(initial=0))))
        unit = (mix(key[:, None] + slot.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        start, stop = slot * degree // most, (slot + 1) * degree // most
        drawn = np.where(degree <= most, slot, start + ((stop - start) * unit).astype(np.int64))
        rows, column = np.nonzero(slot < degree)
        return rows, (self.first[nodes][:, None] + drawn)[rows, column]


@dataclass(frozen=True)
class Neighbourhoods:
    """Subgraphs around B roots (or groups of roots), one after another.

    Attributes:
        node: (M,) nodes of the whole graph, those of a subgraph together, its roots first.
        first: (B + 1,) first node of each subgraph.
        ends: (K, 2) edges inside the subgraphs, as places within each.
        edge: (K,) their numbers in the whole graph.
        first_edge: (B + 1,) first edge of each subgraph.
    """

    node: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    edge: np.ndarray
    first_edge: np.ndarray


def neighbourhoods(
    near: Neighbours, roots: np.ndarray, key: np.ndarray, fanouts: Sequence[int], look: int = LOOK
) -> Neighbourhoods:
    """Sample around (B, R) roots: `fanouts[h]` neighbours a node at hop h (Hamilton et al. 2017, GraphSAGE, §3.1).

    All edges between the nodes found are kept (of nodes with many neighbours, those that `look` draws reach). The
    result is a function of the graph, the roots and their (B,) uint64 keys alone.
    """
    total = np.int64(len(near.first) - 1)
    owner, node = np.repeat(np.arange(len(roots)), roots.shape[1]), roots.ravel()
    fresh = np.ones(len(node), dtype=bool)
    for hop, most in enumerate(fanouts):
        rows, place = near.draw(node[fresh], _key(key[owner[fresh]], node[fresh], hop), most)
        found = near.target[place]
        known = len(node)
        owner, node = np.concatenate([owner, owner[fresh][rows]]), np.concatenate([node, found])
        _, where = np.unique(owner * total + node, return_index=True)
        where.sort()
        owner, node, fresh = owner[where], node[where], where >= known
    order = np.argsort(owner, kind="stable")
    owner, node = owner[order], node[order]
    first = np.searchsorted(owner, np.arange(len(roots) + 1))
    ends, edge, of = _inside(near, owner, node, first, _key(key[owner], node, len(fanouts)), total, look)
    return Neighbourhoods(node, first, ends, edge, np.searchsorted(of, np.arange(len(roots) + 1)))


def _inside(
    near: Neighbours,
    owner: np.ndarray,
    node: np.ndarray,
    first: np.ndarray,
    key: np.ndarray,
    total: np.int64,
    look: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges between nodes of the same owner: (K, 2) places, (K,) edge numbers, (K,) owners, ascending."""
    rows, place = near.draw(node, key, look)
    ids = owner * total + node
    order = np.argsort(ids)
    wanted = owner[rows] * total + near.target[place]
    spot = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    there = ids[spot] == wanted
    rows, spot, edge = rows[there], spot[there], near.edge[place][there]
    of = owner[rows]
    _, once = np.unique(of * np.int64(max(len(near.edge) // 2, 1)) + edge, return_index=True)
    pairs = np.stack([rows[once], spot[once]], axis=1) - first[of[once]][:, None]
    return np.sort(pairs, axis=1), edge[once], of[once]


def _key(key: np.ndarray, node: np.ndarray, hop: int) -> np.ndarray:
    return mix(mix(key + np.uint64(hop)) ^ node.astype(np.uint64))


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) without the first shift of its finaliser: uint64 in, well-mixed uint64 out."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---- features of structure


def transition(graphs: Graphs) -> sparse.csr_array:
    """(N, N) probabilities of a random walk's next step."""
    near = graphs.neighbours
    weight = np.repeat(1 / np.maximum(near.degree, 1), near.degree).astype(np.float32)
    return sparse.csr_array((weight, near.target, near.first), shape=(graphs.nodes, graphs.nodes))


def degrees(graphs: Graphs) -> np.ndarray:
    """(N, 2) float32: logarithm of the degree, and its mean over the neighbours."""
    own = np.log1p(graphs.neighbours.degree).astype(np.float32)[:, None]
    return np.concatenate([own, transition(graphs) @ own], axis=1)


def returns(graphs: Graphs, steps: int) -> np.ndarray:
    """(N, steps - 1) float32: how likely a walk of 2 … `steps` steps ends where it began (Dwivedi et al. 2022, "Graph
    Neural Networks with Learnable Structural and Positional Representations", §3.2). For graphs of some hundred nodes:
    the powers fill up.
    """
    step = transition(graphs)
    power, found = step, []
    for _ in range(steps - 1):
        power = power @ step
        found.append(power.diagonal())
    return np.stack(found, axis=1).astype(np.float32)


def positions(graphs: Graphs, width: int, steps: int) -> np.ndarray:
    """(N, width) float32: where random walks of 1 … `steps` steps lead, as sums of random codes of the nodes they reach
    (Chen et al. 2019, "Fast and Accurate Network Embeddings via Very Sparse Random Projection", §3). Nodes whose walks
    meet have similar vectors. A node's code follows from its name, so that it stays the same while a graph grows.
    """
    step, found = transition(graphs), np.zeros((graphs.nodes, width), dtype=np.float32)
    for start in range(0, width, TOGETHER):
        part = found[:, start : start + TOGETHER]
        reached = _signs(graphs.code, np.arange(start, start + part.shape[1]))
        for _ in range(steps):
            reached = step @ reached
            length = np.linalg.norm(reached, axis=1, keepdims=True)
            part += reached / np.maximum(length, np.finfo(np.float32).tiny)
    return found


def _signs(code: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(N, K) float32 that are 1, -1 (one in six each) or 0, by a hash of a node's code and the column."""
    face = mix(mix(code)[:, None] + columns.astype(np.uint64)) % np.uint64(6)
    return (face == 0).astype(np.float32) - (face == 1)
