"""Graphs that come one by one, each with its own mistakes, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labelfree.errors import LabelfreeError

#: A column of words with more different values is an identifier, not a feature.
MOST_WORDS = 64


@dataclass
class Found:
    """A source as it was read, before anything is chosen or mended.

    Attributes:
        nodes, edges, graphs: columns by name, a value (or row of numbers) each.
        ends: (M, 2) int64 node numbers; -1 where there is no such node.
        of: (N,) int64 graph of each node, ascending.
        code: (N,) uint64 that names each node.
        unknown: name of a node that an edge has and the nodes have not.
        loose: edges that were left out because an end of theirs is empty.
        total: graphs, those without a node counted.
        broken: why a graph cannot be used, by its number; it has no nodes here.
        codes: columns whose whole numbers are names of kinds (atom types), not quantities.
        names: (N,) of the nodes, where they have any.
    """

    ends: np.ndarray
    of: np.ndarray
    code: np.ndarray
    nodes: dict[str, np.ndarray] = field(default_factory=dict)
    edges: dict[str, np.ndarray] = field(default_factory=dict)
    graphs: dict[str, np.ndarray] = field(default_factory=dict)
    unknown: str = ""
    loose: int = 0
    total: int = 1
    broken: dict[int, str] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    names: np.ndarray | None = None


def many(graphs: Sequence[Any]) -> Found:
    """Graphs one by one: `nodes` (values, rows of numbers, or objects), `edges` of node numbers, further columns."""
    ends, of, first = [], [], 0
    kinds: tuple[dict[str, list[np.ndarray]], ...] = ({}, {}, {})
    broken: dict[int, str] = {}
    for number, graph in enumerate(graphs):
        try:
            pairs, count, columns = _one(graph, kinds)
        except (ValueError, TypeError) as error:
            broken[number] = str(error)
            continue
        ends.append(pairs + first)
        of.append(np.full(count, number))
        first += count
        for (kind, name), value in columns:
            kinds[kind].setdefault(name, []).append(value)
    if not of:
        raise LabelfreeError(
            f"None of the {len(graphs)} graphs can be used; graph 0: {broken[0]}.",
            'A graph is {"nodes": [...], "edges": [[0, 1], ...]}.',
        )
    of_nodes, of_edges, of_graphs = (
        {name: np.concatenate(values) for name, values in kind.items() if len(values) == len(of)} for kind in kinds
    )
    whole = np.array([number not in broken for number in range(len(graphs))])
    of_graphs = {name: _with_gaps(values, whole) for name, values in of_graphs.items()}
    codes = {
        name
        for kind in (of_nodes, of_edges)
        for name, values in kind.items()
        if values.ndim == 1 and values.dtype.kind in "iu" and len(np.unique(values)) <= MOST_WORDS
    }
    found = Found(np.concatenate(ends), np.concatenate(of), np.arange(first, dtype=np.uint64), of_nodes, of_edges)
    found.graphs, found.total, found.broken, found.codes = of_graphs, len(graphs), broken, frozenset(codes)
    return found


def _with_gaps(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A value a graph from those of the graphs that are `whole`; NaN or None for the others."""
    if whole.all():
        return values
    number = values.dtype.kind in "iuf"
    spread = np.full((len(whole), *values.shape[1:]), np.nan if number else None, dtype=float if number else object)
    spread[whole] = values
    return spread


#: What a graph says of its nodes (0), its edges (1) or itself (2), by name.
_Said = list[tuple[tuple[int, str], np.ndarray]]


def _one(graph: Any, known: Sequence[Mapping[str, Sequence[np.ndarray]]]) -> tuple[np.ndarray, int, _Said]:
    """(M, 2) ends, the number of nodes, and all else that a graph says, of the shape `known` from those before it.

    Raises:
        ValueError, TypeError: it cannot be used, and why.
    """
    if not isinstance(graph, Mapping):
        raise ValueError("it is no object with nodes and edges")
    nodes = graph.get("nodes")
    if nodes is not None and not isinstance(nodes, list | tuple | np.ndarray):
        raise ValueError("its nodes are no list")
    pairs = _pairs(graph.get("edges", graph.get("links", ())), nodes)
    count = len(nodes) if nodes is not None else int(graph.get("count", pairs.max(initial=-1) + 1))
    if count < 1:
        raise ValueError("it has no node")
    wrong = (pairs < 0) | (pairs >= count)
    if wrong.any():
        raise ValueError(f"an edge leads to node {pairs[wrong][0]}, which does not exist")
    columns = _columns(graph, count, len(pairs))
    for (kind, name), value in columns:
        if name in known[kind] and known[kind][name][0].shape[1:] != value.shape[1:]:
            raise ValueError(f"its '{name}' have another shape than those of the graphs before it")
    return pairs, count, columns


def _pairs(edges: Any, nodes: Any) -> np.ndarray:
    """(M, 2) node numbers, of pairs of these, or of objects whose source and target name nodes by their id."""
    if isinstance(edges, list | tuple) and _objects(edges):
        known = nodes if nodes is not None and _objects(nodes) else ()
        place = {repr(node["id"]): number for number, node in enumerate(known) if "id" in node}
        names = [edge.get(end) for edge in edges for end in ("source", "target")]
        if unknown := [name for name in names if place and repr(name) not in place]:
            raise ValueError(f"an edge leads to node {unknown[0]!r}, which does not exist")
        edges = np.reshape([place.get(repr(name), name) for name in names], (-1, 2))
    try:
        pairs = np.asarray(edges)
    except ValueError:  # of several lengths
        pairs = np.zeros(1)
    if pairs.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError("its edges are no pairs of node numbers")
    return pairs.astype(np.int64)


def _objects(items: Sequence[Any]) -> bool:
    return len(items) > 0 and all(isinstance(item, Mapping) for item in items)


def _columns(graph: Mapping[str, Any], nodes: int, edges: int) -> _Said:
    """All that a graph says besides its ends; what is as long as nothing in it is left out."""
    found: _Said = []
    for name, value in graph.items():
        if name == "count" or value is None or isinstance(value, Mapping):
            continue
        if name in ("nodes", "edges", "links"):
            kind = int(name != "nodes")
            if _objects(value):
                keys = [key for key in value[0] if not (kind and key in ("source", "target"))]
                found += [((kind, key), _array(key, [item.get(key) for item in value])) for key in keys]
            elif not kind:
                found.append(((0, name), _array(name, value)))
        elif isinstance(value, str) or not hasattr(value, "__len__"):
            found.append(((2, name), np.array([value])))
        else:
            level = 1 if name.startswith("edge") and len(value) == edges else None
            level = (0 if len(value) == nodes else 1 if len(value) == edges else None) if level is None else level
            if level is not None:
                found.append(((level, name), _array(name, value)))
    return found


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"its '{name}' have rows of different lengths") from None
