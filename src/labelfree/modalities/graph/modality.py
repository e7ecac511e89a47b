"""Graphs: one big one, whose nodes (or edges) are the samples, each with its neighbourhood; or many small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description, no_column, seen_by_encoder
from labelfree.data.draw import Draw
from labelfree.data.graphs import Graphs, degrees, mix, neighbourhoods, positions, returns
from labelfree.data.on_device import on_device
from labelfree.data.sources import hash_of
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import take
from labelfree.modalities.base import Budget, Choice, Links, Modality, token_mask
from labelfree.modalities.graph import views as augment
from labelfree.modalities.graph.features import drawing, scale_of, structure, summary
from labelfree.modalities.graph.sources import Column, GraphOptions, looks_like_graph, read_graphs
from labelfree.needs import Need
from labelfree.settings import Settings, Widths

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Nodes that a sample is about, and stand first in it; 0 for all.
ROOTS = {"graph": 0, "node": 1, "edge": 2}
#: Squared sizes of graphs, summed, up to which powers of their transition matrices are made.
DENSE = 20_000_000
#: Bytes that positions may take.
POSITIONS = 64 << 20
#: Steps of the walks whose returns are features.
RETURNS = 8

Share = Annotated[float, Field(ge=0, lt=1)]


class GraphSettings(Settings):
    """How graphs are read, sampled and augmented."""

    level: Literal["auto", "node", "edge", "graph"] = "auto"
    """what a sample is; auto: a graph where there are many, else a node with its neighbourhood"""
    columns: tuple[str, ...] = ()
    """columns of nodes and edges that are features, by commas; empty: all but labels, names, times and masks"""
    exclude: tuple[str, ...] = ()
    """columns that are no features, such as the label, by commas"""
    ends: tuple[str, ...] = ()
    """the two columns that name an edge's ends; empty: found by their names"""
    structure: Literal["auto", "none", "degrees", "walks", "positions"] = "auto"
    """features from edges: degrees, returns of walks too, or where walks lead; auto: for nodes that have no others"""
    position_width: PositiveInt | Literal["auto"] = "auto"
    """numbers that say where a node's random walks lead; auto: 256, fewer in large graphs"""
    position_steps: PositiveInt = 32
    """steps of these walks"""
    fanouts: Widths = (10, 5)
    """neighbours sampled for each node, hop by hop; not used where a sample is a graph"""
    edge_drop: Share = 0.3
    """views: share of the edges that is dropped"""
    node_drop: Share = 0.0
    """views: share of the nodes that is dropped"""
    node_mask: Share = 0.0
    """views: share of the nodes whose features are all blanked"""
    feature_mask: Share = 0.3
    """views: share of the features that is blanked in all nodes of a sample"""
    walk_steps: NonNegativeInt = 0
    """views: only nodes that a random walk of so many steps visits stay; 0 for all"""
    changes: Literal["all", "one"] = "all"
    """views: all of these changes, or one of them, drawn for each view of each sample"""
    swap: Share = 0.05
    """masks: share of the hidden nodes that get another node's features instead of being hidden"""
    node_error: Literal["cosine", "squared"] = "cosine"
    """how predicted features are compared with the true ones"""
    error_power: PositiveFloat = 2.0
    """power of the cosine error; larger ones weigh what is easily predicted less"""


class GraphDataset(Dataset):
    """Graphs, or nodes or edges of them, as samples.

    Attributes:
        graphs: all of them; their features are what samples hold.
        given: how many of the features the source gave; the rest say how nodes are linked.
        seen: columns of nodes, or of edges, that are features: of what a sample is.
    """

    def __init__(
        self, graphs: Graphs, level: str, fanouts: Sequence[int], given: int, seen: frozenset[str] = frozenset()
    ) -> None:
        self.graphs, self.level, self.fanouts, self.given, self.seen = graphs, level, tuple(fanouts), given, seen
        self.connected = level != "graph"
        self.unreadable = (
            () if level == "graph" else [Unreadable(-1, f"graph {n}", why) for n, why in graphs.broken.items()]
        )

    def __len__(self) -> int:
        return {"graph": self.graphs.count, "node": self.graphs.nodes, "edge": len(self.graphs.edges)}[self.level]

    def source_count(self) -> int:
        return self.graphs.count

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        if self.level == "graph":
            return [self._graph(int(index)) for index in indices]
        rows = np.asarray(indices, dtype=np.int64)
        return self._around(rows) if len(rows) else []

    def _graph(self, number: int) -> Sample | Unreadable:
        own = self.graphs
        if number in own.broken:
            return Unreadable(number, self.name(number), own.broken[number])
        start, stop = own.first[number : number + 2]
        edges = slice(*own.first_edge[number : number + 2])
        return Sample(own.features[start:stop], number, extra=self._extra(own.edges[edges] - start, edges))

    def _around(self, rows: np.ndarray) -> list[Sample | Unreadable]:
        """Samples around nodes or edges; which neighbours they have depends on the graph and their number alone."""
        own = self.graphs
        roots = rows[:, None] if self.level == "node" else own.edges[rows]
        found = neighbourhoods(own.neighbours, roots, mix(rows.astype(np.uint64)), self.fanouts)
        features, samples = own.features[found.node], []
        for number, row in enumerate(rows.tolist()):
            nodes, edges = slice(*found.first[number : number + 2]), slice(*found.first_edge[number : number + 2])
            samples.append(Sample(features[nodes], row, extra=self._extra(found.ends[edges], found.edge[edges])))
        return list(samples)

    def _extra(self, ends: np.ndarray, edges: Any) -> dict[str, np.ndarray]:
        extra = {"edges": ends.astype(np.int32)}
        if self.graphs.attributes.shape[1]:
            extra["attributes"] = self.graphs.attributes[edges]
        return extra

    def nodes_of(self, rows: np.ndarray) -> np.ndarray:
        """Nodes that the samples `rows` are about."""
        if self.level == "node":
            return rows
        if self.level == "edge":
            return np.unique(self.graphs.edges[rows])
        first = self.graphs.first
        return np.concatenate([np.arange(first[row], first[row + 1]) for row in rows])

    def name(self, index: int) -> str:
        own = self.graphs
        if self.level == "graph":
            names = own.columns.get("graph", {}).get("graph")
            return f"graph {index if names is None else names[index]}"
        named = [
            str(node) if own.names is None else str(own.names[node])
            for node in ([index] if self.level == "node" else own.edges[index])
        ]
        return f"{self.level} {'–'.join(named)}"

    def columns(self) -> Sequence[str]:
        own = [name for name in self.graphs.columns.get(self.level, {}) if name not in self.seen]
        return own if self.level == "graph" or self.graphs.count == 1 or "graph" in own else [*own, "graph"]

    def column(self, name: str) -> np.ndarray:
        own = self.graphs.columns.get(self.level, {})
        if name in self.seen:
            raise seen_by_encoder(name, "a feature")
        if name in own:
            return own[name]
        if name == "graph" and name in self.columns():
            nodes = np.arange(self.graphs.nodes) if self.level == "node" else self.graphs.edges[:, 0]
            return np.searchsorted(self.graphs.first, nodes, side="right") - 1
        raise no_column(name, self.columns())

    def fingerprint(self) -> str:
        own = self.graphs
        given = own.features[:, : self.given]
        return hash_of(own.edges, own.first, given, own.attributes, self.level, self.fanouts)

    def describe(self) -> Description:
        own = self.graphs
        sizes, degree = np.diff(own.first), own.neighbours.degree
        facts = {"level": f"a sample is a {self.level}"}
        if own.count > 1:
            facts["graphs"] = (
                f"{own.count:,} of {sizes.min():,} … {sizes.max():,} nodes (median {np.median(sizes):.0f})"
            )
        facts |= {"nodes": f"{own.nodes:,}", "edges": f"{len(own.edges):,} (used both ways)"}
        facts["degree"] = f"{degree.min()} … {degree.max():,} (mean {degree.mean():.1f})"
        if alone := int((degree == 0).sum()):
            facts["without an edge"] = f"{alone:,} nodes"
        made = own.features.shape[1] - self.given
        facts["features"] = f"{self.given} given" + (f", {made} made of the edges" if made else "")
        if own.attributes.shape[1]:
            facts["edge features"] = f"{own.attributes.shape[1]}"
        if np.isnan(own.features).any():
            facts["missing"] = f"{np.isnan(own.features).mean():.1%} of the features"
        if own.broken:
            facts["broken"] = f"{len(own.broken):,} graphs"
        numbers = {
            "nodes": float(own.nodes),
            "edges": float(len(own.edges)),
            "graphs": float(own.count),
            "features": float(own.features.shape[1]),
            "given": float(self.given),
            "roots": float(ROOTS[self.level]),
            "median_size": float(np.median(sizes)),
        }
        return Description("graph", len(self), {**facts, **own.facts}, numbers)


class Graph(Modality):
    """Graphs. A token is a node; a sample is a graph, or a node or edge with a sampled neighbourhood, its roots first.
    Edges have no direction.
    """

    name = "graph"
    settings_class = GraphSettings
    offers = frozenset({Need.VIEWS, Need.TARGETS, Need.MASK, Need.CORRUPTION, Need.LINKS})

    def __init__(self, settings: GraphSettings | None = None) -> None:
        super().__init__(settings)
        self._level = ""
        self._structure = ""
        self._positions = 0
        self._of_nodes: tuple[Column, ...] | None = None
        self._of_edges: tuple[Column, ...] | None = None
        self._scale = torch.zeros(2, 0)
        self._edge_scale = torch.zeros(2, 0)

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        return looks_like_graph(source)

    def open(self, source: Any) -> GraphDataset:
        own = self.settings
        if isinstance(source, GraphDataset):
            return source
        options = GraphOptions(own.columns, own.exclude, own.ends, self._of_nodes, self._of_edges)
        opened = read_graphs(source, options)
        graphs = opened.graphs
        if self._of_nodes is None:
            self._of_nodes, self._of_edges = opened.of_nodes, opened.of_edges
            self._level = ("graph" if graphs.count > 1 else "node") if own.level == "auto" else own.level
            self._structure = choose_structure(graphs) if own.structure == "auto" else own.structure
            self._positions = position_width(graphs) if own.position_width == "auto" else own.position_width
        given = graphs.features.shape[1]
        made = self._made(graphs)
        features = np.concatenate([graphs.features, *made], axis=1)
        if not features.shape[1]:
            raise LabelfreeError("The nodes have no features.", "Let some be made of the edges: structure=degrees.")
        features_of = {"node": self._of_nodes, "edge": self._of_edges}.get(self._level) or ()
        seen = frozenset(column.name for column in features_of)
        return GraphDataset(replace(graphs, features=features), self._level, own.fanouts, given, seen)

    def _made(self, graphs: Graphs) -> list[np.ndarray]:
        """Features of structure."""
        own, kind = self.settings, self._structure
        if kind == "none":
            return []
        if kind == "walks":
            if _squares(graphs) > DENSE:
                raise LabelfreeError(
                    "Returns of random walks take too much memory in graphs as large as these.",
                    "Set structure=positions, or degrees.",
                )
            return [degrees(graphs), returns(graphs, RETURNS)]
        if kind == "positions":
            return [degrees(graphs), positions(graphs, self._positions, own.position_steps)]
        return [degrees(graphs)]

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        if found.numbers["roots"]:
            return [
                Choice("method", "grace", "nodes keep their identity when edges and features are dropped"),
                Choice("encoder", "pyg:gcn", "two steps over the neighbours, as the neighbourhoods sampled"),
                Choice("batch_size", 256, "nodes to be told apart, with their neighbourhoods"),
            ]
        return [
            Choice("method", "graphmae", "what a node is follows from those around it; graphs are not told apart"),
            Choice("encoder", "pyg:gin", "tells structures apart as well as passing messages can"),
            Choice("batch_size", 64, "small sets of graphs still give enough steps"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        source, rows = dataset.origin()
        assert isinstance(source, GraphDataset)
        kept = np.array([row for row in rows.tolist() if row not in source.graphs.broken or self._level != "graph"])
        nodes = source.nodes_of(kept)
        inside = np.zeros(source.graphs.nodes, dtype=bool)
        inside[nodes] = True
        edges = inside[source.graphs.edges[:, 0]]
        self._scale = torch.tensor(np.stack(scale_of(source.graphs.features[nodes])), dtype=torch.float32)
        self._edge_scale = torch.tensor(np.stack(scale_of(source.graphs.attributes[edges])), dtype=torch.float32)

    def state(self) -> dict[str, Any]:
        return {
            "level": self._level,
            "structure": self._structure,
            "positions": self._positions,
            "of_nodes": [asdict(column) for column in self._of_nodes or ()],
            "of_edges": [asdict(column) for column in self._of_edges or ()],
            "scale": self._scale.tolist(),
            "edge_scale": self._edge_scale.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._level, self._structure, self._positions = state["level"], state["structure"], state["positions"]
        self._of_nodes, self._of_edges = (
            tuple(Column(column["name"], column["width"], tuple(column["words"])) for column in state[key])
            for key in ("of_nodes", "of_edges")
        )
        self._scale = torch.tensor(state["scale"], dtype=torch.float32)
        self._edge_scale = torch.tensor(state["edge_scale"], dtype=torch.float32).reshape(2, -1)

    @property
    def width(self) -> int:
        """Features of a node."""
        return self._scale.shape[1]

    @property
    def edge_width(self) -> int:
        """Features of an edge."""
        return self._edge_scale.shape[1]

    @property
    def roots(self) -> int:
        """Nodes that a sample is about; 0 for all."""
        return ROOTS[self._level]

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        lengths = torch.tensor([len(sample.data) for sample in samples])
        equal = bool((lengths == lengths[0]).all())
        extra = {"edges": _padded([sample.extra["edges"] for sample in samples], -1).long()}
        if self.edge_width:
            extra["attributes"] = _padded([sample.extra["attributes"] for sample in samples], 0)
        return Batch(
            data=_padded([sample.data for sample in samples], 0),
            index=torch.tensor([sample.index for sample in samples]),
            lengths=None if equal else lengths,
            group=torch.tensor([sample.group for sample in samples]),
            extra=extra,
        )

    def prepare(self, batch: Batch) -> Batch:
        extra = dict(batch.extra)
        if "attributes" in extra:
            extra["attributes"] = _scaled(extra["attributes"], self._edge_scale).nan_to_num()
        return batch.with_(data=_scaled(batch.data, self._scale), extra=extra)

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        own, view = self.settings, self.prepare(batch).with_(draw=draw)
        if own.walk_steps or own.node_drop or own.changes == "one":
            view = augment.only_nodes(view, augment.everywhere(view))  # all views can then be one batch
        if policy in ("light", "none"):
            return view
        changes: list[Callable[[Batch], Batch]] = []
        if own.walk_steps:
            changes.append(lambda x: augment.only_nodes(x, augment.walk(x, draw, own.walk_steps, self.roots)))
        if own.node_drop:
            changes.append(lambda x: augment.only_nodes(x, augment.drop_nodes(x, draw, own.node_drop, self.roots)))
        if own.edge_drop:
            changes.append(lambda x: augment.drop_edges(x, draw, own.edge_drop))
        if own.node_mask:
            changes.append(lambda x: x.with_(data=augment.mask_nodes(x.data, draw, own.node_mask)))
        if own.feature_mask:
            changes.append(lambda x: x.with_(data=augment.mask_features(x.data, draw, own.feature_mask)))
        if own.changes == "one" and changes:
            return augment.one_of([change(view) for change in changes], draw)
        for change in changes:
            view = change(view)
        return view

    def corrupt(self, view: Batch, draw: Draw) -> Batch:
        """The same graph with its nodes' features shuffled (Veličković et al. 2019, "Deep Graph Infomax", §4.2)."""
        return view.with_(data=take(view.data, augment.shuffled(view, draw)))

    def links(self, view: Batch, draw: Draw, share: float) -> Links:
        edges = view.extra["edges"]
        real = edges[..., 0] >= 0
        hidden = draw.bernoulli("hidden links", share, edges.shape[1]) & real
        seen = view.with_(extra={**view.extra, "edges": edges.masked_fill(hidden[..., None], -1)})
        if self.roots:
            return Links(seen, edges.clamp_min(0), hidden, None, hidden)
        count = view.data.shape[1]
        valid = augment.real_nodes(view)
        lengths = torch.full_like(view.index, count) if valid is None else valid.sum(dim=1)
        other = (draw.uniform("others", edges.shape[1]) * lengths[:, None]).long()
        start = edges[..., 0].clamp_min(0)
        known = torch.where(real, edges[..., 0] * count + edges[..., 1], -1).sort(dim=1).values
        wanted = torch.minimum(start, other) * count + torch.maximum(start, other)
        there = torch.searchsorted(known, wanted).clamp(max=known.shape[1] - 1)
        apart = hidden & (other != start) & (known.gather(1, there) != wanted)
        return Links(seen, edges.clamp_min(0), hidden, torch.stack([start, other], dim=2), apart)

    # ---- tokens: masks, targets

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.modalities.graph.tokens import GraphStem, GraphTrunk

        chosen = SIZES[size]
        stem = GraphStem(self.width, chosen.dim)
        return GraphTrunk(stem, chosen.dim, chosen.depth, chosen.heads, causal=causal, roots=self.roots)

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Nodes, each by itself; padding never."""
        return token_mask(draw.uniform("mask", batch.data.shape[1]), ratio, augment.real_nodes(batch))

    def hide(self, batch: Batch, mask: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        """Some hidden nodes look like another node instead (Hou et al. 2022, "GraphMAE", §3.2)."""
        swapped = mask & draw.bernoulli("swap", self.settings.swap, mask.shape[1])
        other = take(batch.data, augment.shuffled(batch, draw))
        return batch.with_(data=torch.where(swapped[..., None], other, batch.data)), mask & ~swapped

    def targets(self, batch: Batch) -> Tensor:
        return batch.data

    @property
    def target_dim(self) -> int:
        return self.width

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cosine error to a power (Hou et al. 2022, §3.2, eq. 2), or squared error; missing features count nothing."""
        known = ~target.isnan()
        target = target.nan_to_num()
        if self.settings.node_error == "squared":
            return ((prediction - target).square() * known).sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
        error = 1 - F.cosine_similarity(prediction * known, target, dim=-1)
        return error.clamp_min(0) ** self.settings.error_power

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        """A predicted node is as large as it is in the view where the error is one of directions."""
        x = view.data.float()
        if prediction is not None:
            found = prediction.float()
            if self.settings.node_error == "cosine":
                own, size = (each.nan_to_num().norm(dim=-1, keepdim=True) for each in (x, found))
                found = found * own / size.clamp_min(1e-12)
            x = found if mask is None else torch.where(mask[..., None], found, x)
        mean, std = on_device(self._scale, x.device)
        nodes, edges = (part.cpu().numpy() for part in (x * std + mean, view.extra["edges"]))
        counts = [x.shape[1]] * len(view) if view.lengths is None else view.lengths.tolist()
        rows = zip(nodes, counts, view.index.tolist(), edges, strict=True)
        return [Sample(own[:count], index, extra={"edges": ends}) for own, count, index, ends in rows]

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        return drawing(sample.data, sample.extra["edges"], self.roots)

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        return [self._described(dataset, lambda item, x: summary(item, x, self.roots)) for dataset in (train, *others)]

    def copy_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """What is around the nodes: many different graphs (isomers) have the same summary."""
        return [self._described(dataset, structure) for dataset in (train, *others)]

    def _described(self, dataset: Dataset, describe: Callable[[Sample, np.ndarray], np.ndarray]) -> np.ndarray:
        """(N, F) what `describe` makes of each graph and its normalised nodes; zeros where it cannot be read."""
        mean, std = self._scale.numpy()
        rows: list[np.ndarray | None] = []
        for start in range(0, len(dataset), 1024):
            for item in dataset.read(range(start, min(start + 1024, len(dataset)))):
                known = isinstance(item, Sample)
                x = np.nan_to_num((item.data - mean) / std) if known else None  # type: ignore[union-attr]
                rows.append(describe(item, x) if known else None)  # type: ignore[arg-type]
        width = next((len(row) for row in rows if row is not None), 0)
        return np.stack([np.zeros(width, np.float32) if row is None else row for row in rows])


def choose_structure(graphs: Graphs) -> str:
    """Which features of structure nodes get: none where they have their own."""
    if graphs.features.shape[1]:
        return "none"
    if graphs.count == 1:
        return "positions"
    return "walks" if _squares(graphs) <= DENSE else "degrees"


def position_width(graphs: Graphs) -> int:
    """Numbers that say where walks lead: 256, or as many as `POSITIONS` leave room for, and 32 at least."""
    return int(min(256, max(32, POSITIONS // (4 * max(graphs.nodes, 1)) // 32 * 32)))


def _squares(graphs: Graphs) -> float:
    """Entries of the transition matrices' powers when these have filled up."""
    return float(np.square(np.diff(graphs.first), dtype=np.float64).sum())


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    mean, std = on_device(scale, x.device)
    return (x - mean) / std


def _padded(arrays: Sequence[np.ndarray], fill: float) -> Tensor:
    """(B, longest, ...) with `fill` behind the shorter ones; at least 1 long."""
    longest = max(1, *(len(array) for array in arrays))
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)
