"""Graphs: reading, sampling, views, masks, links — per sample, whatever else is in the batch; and bad input."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import labelfree
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget
from labelfree.modalities.graph import Graph, GraphDataset, GraphSettings
from labelfree.modalities.graph import views as augment
from labelfree.modalities.series import Series
from labelfree.objectives._views import ViewSettings, two_views
from labelfree.training.plan import recognise


def fitted(source: Any, **own: Any) -> tuple[Graph, GraphDataset]:
    modality = Graph(GraphSettings.read(own, "graph"))
    dataset = modality.open(source)
    modality.fit(dataset)
    return modality, dataset


def batch_of(modality: Graph, dataset: GraphDataset, rows: list[int]) -> Batch:
    return modality.collate([item for item in dataset.read(rows) if isinstance(item, Sample)])


def draw_of(batch: Batch) -> Draw:
    return Draw.start(7, 0, 0, batch.index)


def molecules(count: int = 12) -> list[dict[str, Any]]:
    """Rings of different size, with kinds of atoms and of bonds."""
    found = []
    for number in range(count):
        size = 4 + number % 5
        edges = [[a, (a + 1) % size] for a in range(size)]
        kinds = [(number + a) % 3 for a in range(size)]
        found.append({"nodes": kinds, "edges": edges, "edge_labels": [a % 2 for a in range(size)], "y": number % 2})
    return found


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Accounts and payments as tables, with a label, gaps, a loop and a repeat."""
    nodes = [f"a{n},{'' if n == 3 else n * 10},{'xyz'[n % 3]},{n % 2}\n" for n in range(30)]
    (tmp_path / "nodes.csv").write_text("id,balance,kind,fraud\n" + "".join(nodes))
    edges = [(n, (n * 7 + 3) % 30) for n in range(30)] + [(n, (n + 1) % 30) for n in range(30)]
    rows = [f"a{a},a{b},{a + b}\n" for a, b in [*edges, (5, 5), edges[0]]]
    (tmp_path / "edges.csv").write_text("source,target,amount\n" + "".join(rows))
    return tmp_path


# ---- reading


def test_tables_of_nodes_and_edges_become_one_graph(bank: Path) -> None:
    modality, dataset = fitted(bank, exclude="fraud")
    assert recognise(bank)[0] == "graph"
    assert (len(dataset), dataset.level) == (30, "node")
    assert modality.width == 4, "a number, and one of three words"
    assert modality.edge_width == 1
    found = dataset.describe()
    assert found.facts["loops left out"] == "1"
    assert found.facts["repeated edges merged"] == "1"
    assert dataset.column("fraud").tolist() == [n % 2 for n in range(30)]
    assert dataset.name(4) == "node a4"


def test_columns_called_like_labels_are_no_features(bank: Path) -> None:
    text = (bank / "nodes.csv").read_text().replace("fraud", "label")
    (bank / "nodes.csv").write_text(text)
    modality, dataset = fitted(bank)
    assert modality.width == 4
    assert "label (looks like a label)" in dataset.describe().facts["left out"]


def test_decimals_are_numbers_and_identifiers_among_them_are_none(bank: Path) -> None:
    cents = pa.decimal128(12, 2)
    nodes = {
        "id": [f"a{n}" for n in range(30)],
        "balance": pa.array([None if n == 3 else Decimal(n) / 4 for n in range(30)], cents),
        "user_id": pa.array([Decimal(n) for n in range(30)], pa.decimal128(38, 0)),
    }
    (bank / "nodes.csv").unlink()
    parquet.write_table(pa.table(nodes), bank / "nodes.parquet")
    modality, dataset = fitted(bank)
    assert modality.width == 1
    assert "user_id (no feature)" in dataset.describe().facts["left out"]
    found = dataset.graphs.features[:, 0]
    np.testing.assert_array_equal(found, [np.nan if n == 3 else n / 4 for n in range(30)])


def test_y_is_a_feature_of_nodes_that_have_x_and_z(bank: Path) -> None:
    places = [f"a{n},{n / 2},{n / 3},{n / 5}" for n in range(30)]
    for axes, width in (("x,y,z", 3), ("u,y,z", 2)):
        (bank / "nodes.csv").write_text("\n".join([f"id,{axes}", *places]))
        assert fitted(bank)[0].width == width


@pytest.mark.parametrize(("level", "feature", "label"), [("node", "kind", "is_fraud"), ("edge", "amount", "illicit")])
def test_what_the_encoder_sees_is_no_label(bank: Path, level: str, feature: str, label: str) -> None:
    nodes, edges = bank / "nodes.csv", bank / "edges.csv"
    nodes.write_text(nodes.read_text().replace("fraud", "is_fraud"))
    lines = [f"{line},{row % 2}" for row, line in enumerate(edges.read_text().splitlines())]
    edges.write_text("\n".join([lines[0].replace(",0", ",illicit"), *lines[1:]]))
    modality, dataset = fitted(bank, level=level)
    assert modality.width == 4, "balance and three kinds: what is called like a label is left out"
    assert feature not in dataset.columns()
    assert label in dataset.columns()
    assert len(dataset.column(label)) == len(dataset)
    with pytest.raises(LabelfreeError, match=rf"'{feature}' is a feature, which the encoder sees.*exclude={feature}"):
        dataset.column(feature)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_many_graphs_are_samples_with_kinds_of_nodes_and_edges(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rings.json"
    path.write_text(json.dumps(molecules()), encoding)
    modality, dataset = fitted(path)
    assert (len(dataset), dataset.level, modality.width, modality.edge_width) == (12, "graph", 3, 2)
    sample = dataset.read([1])[0]
    assert isinstance(sample, Sample)
    assert sample.data.shape == (5, 3)
    assert sample.extra["edges"].max() == 4
    assert dataset.column("y").tolist() == [n % 2 for n in range(12)]
    assert modality.show(sample).startswith("<svg")


def test_pytorch_geometric_graphs_need_no_package() -> None:
    class Data(SimpleNamespace):
        def keys(self) -> list[str]:
            return list(vars(self))

        def __getitem__(self, key: str) -> Any:
            return getattr(self, key)

    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    one = Data(edge_index=edges, x=torch.rand(5, 2), y=torch.arange(5), num_nodes=5)
    modality, dataset = fitted(one)
    assert (dataset.level, len(dataset), modality.width) == ("node", 5, 2)
    assert dataset.column("y").tolist() == [0, 1, 2, 3, 4]
    many = [Data(edge_index=edges, x=torch.rand(4, 2), y=torch.tensor([n]), num_nodes=4) for n in range(3)]
    modality, dataset = fitted(many)
    assert (dataset.level, len(dataset)) == ("graph", 3)
    assert dataset.column("y").tolist() == [0, 1, 2]


def test_arrays_tell_nodes_edges_and_graphs_by_their_length(tmp_path: Path) -> None:
    path = tmp_path / "graphs.npz"
    ends = np.array([[0, 1, 3, 4, 5], [1, 2, 4, 5, 3]])
    np.savez(path, edge_index=ends, graph=[0, 0, 0, 1, 1, 1], y=np.arange(6), topic=[7, 8], kind=np.arange(5))
    _, dataset = fitted(path)
    assert dataset.column("topic").tolist() == [7, 8]
    _, nodes = fitted(path, level="node")
    assert nodes.column("y").tolist() == list(range(6))
    assert nodes.column("graph").tolist() == [0, 0, 0, 1, 1, 1]
    _, edges = fitted(path, level="edge", exclude="kind")
    assert sorted(edges.column("kind").tolist()) == list(range(5))


def test_labels_of_graphs_given_as_arrays_follow_the_numbers_of_the_graphs() -> None:
    ends = np.arange(24).reshape(12, 2).T  # twelve graphs of one edge
    own = {"x": np.arange(24.0)[:, None], "batch": np.repeat(np.arange(12), 2), "y": np.arange(12)}
    _, dataset = fitted({"edge_index": ends, **own})
    assert [dataset.name(row) for row in range(12)] == [f"graph {row}" for row in range(12)]
    assert dataset.column("y").tolist() == list(range(12))
    assert [item.data[0, 0] for item in dataset.read([2, 10])] == [4, 20]


def test_an_edge_is_a_sample_with_both_its_ends_first(bank: Path) -> None:
    modality, dataset = fitted(bank, level="edge")
    assert (len(dataset), modality.roots) == (len(dataset.graphs.edges), 2)
    sample = dataset.read([9])[0]
    assert isinstance(sample, Sample)
    ends = dataset.graphs.features[dataset.graphs.edges[9]]
    np.testing.assert_array_equal(sample.data[:2], ends)
    assert [0, 1] in sample.extra["edges"].tolist()


@pytest.mark.parametrize(("structure", "width"), [("degrees", 2), ("walks", 9), ("positions", 2 + 16)])
def test_nodes_without_features_get_features_of_structure(structure: str, width: int) -> None:
    edges = np.array([[n, (n * 3 + 1) % 20] for n in range(20)])
    modality, _ = fitted({"edge_index": edges}, structure=structure, position_width=16)
    assert modality.width == width


def test_another_source_is_read_as_the_training_source(tmp_path: Path) -> None:
    modality, _ = fitted(molecules())
    again = Graph(GraphSettings())
    again.load_state(json.loads(json.dumps(modality.state())))
    others = [{"nodes": [2, 9], "edges": [[0, 1]], "edge_labels": [1], "y": 0}]
    sample = again.open(others).read([0])[0]
    assert isinstance(sample, Sample)
    assert sample.data.tolist() == [[0, 0, 1], [0, 0, 0]], "an atom not seen before is none of those known"
    with pytest.raises(LabelfreeError, match="lacks 'nodes'"):
        again.open({"edge_index": np.array([[0, 1], [1, 2]])})


def test_statistics_come_from_the_training_part_alone(bank: Path) -> None:
    from labelfree.tasks.labels import Subset

    modality, _ = fitted(bank, exclude="fraud")
    part = Graph(modality.settings)
    part.fit(Subset(part.open(bank), np.arange(5)))
    assert part.state()["scale"][0][0] == pytest.approx((0 + 10 + 20 + 40) / 4)
    assert modality.state()["scale"][0][0] != part.state()["scale"][0][0]


# ---- views, masks, links


VIEWS = {"edge_drop": 0.4, "node_drop": 0.3, "node_mask": 0.2, "feature_mask": 0.3, "walk_steps": 6}


@pytest.mark.parametrize("changes", ["all", "one"])
@pytest.mark.parametrize("level", ["node", "edge"])
def test_a_view_of_a_sample_does_not_depend_on_its_batch_mates(bank: Path, level: str, changes: str) -> None:
    modality, dataset = fitted(bank, level=level, changes=changes, **VIEWS)
    rows = [3, 11, 20, 28]
    whole = batch_of(modality, dataset, rows)
    alone = batch_of(modality, dataset, [11])
    view, one = modality.view(whole, draw_of(whole)), modality.view(alone, draw_of(alone))
    nodes, edges = one.data.shape[1], one.extra["edges"].shape[1]
    valid = augment.real_nodes(view)
    assert valid is not None
    torch.testing.assert_close(view.data[1, :nodes][valid[1, :nodes]], one.data[0][valid[1, :nodes]], equal_nan=True)
    assert torch.equal(view.extra["edges"][1, :edges], one.extra["edges"][0])
    assert valid[:, : modality.roots].all(), "roots stay"
    ends = view.extra["edges"][1]
    assert valid[1][ends[ends >= 0]].all(), "no edge leads to a node that was dropped"


def test_a_view_changes_in_one_way_where_it_is_asked_for(bank: Path) -> None:
    options = {"edge_drop": 0.5, "node_drop": 0.0, "node_mask": 0.5, "feature_mask": 0.0, "changes": "one"}
    modality, dataset = fitted(bank, **options)
    raw = batch_of(modality, dataset, list(range(24)))
    before, after = modality.prepare(raw), modality.view(raw, draw_of(raw))
    edges = (before.extra["edges"] != after.extra["edges"]).any(dim=2).any(dim=1)
    blank = (before.data.nan_to_num() != after.data.nan_to_num()).any(dim=2)
    assert not (edges & blank.any(dim=1)).any(), "edges are dropped, or nodes blanked"
    assert edges.any()
    assert blank.any()
    assert not after.data[blank].any(), "a blank node has no features left"


@pytest.mark.parametrize("setting", [{"node_drop": 0.2}, {"changes": "one"}], ids=str)
def test_a_view_and_the_sample_itself_make_one_batch(setting: dict[str, Any], bank: Path) -> None:
    modality = Graph(GraphSettings(**setting))
    dataset = modality.open(bank)
    modality.fit(dataset)
    batch = modality.collate(dataset.read(range(4)))  # type: ignore[arg-type]
    both = two_views(modality, batch, Draw.start(0, 0, 0, batch.index), ViewSettings(views="one"))
    assert len(both) == 8


def test_shuffled_nodes_stay_in_their_sample(bank: Path) -> None:
    modality, dataset = fitted(bank)
    view = modality.prepare(batch_of(modality, dataset, [0, 5, 9]))
    other = modality.corrupt(view, draw_of(view))
    lengths = [len(row) for row in view.data] if view.lengths is None else view.lengths.tolist()
    for before, after, length in zip(view.data, other.data, lengths, strict=True):
        assert not torch.equal(before.nan_to_num(), after.nan_to_num())
        assert sorted(before[:length, 1:].tolist()) == sorted(after[:length, 1:].tolist())


@pytest.mark.parametrize("level", ["node", "graph"])
def test_hidden_links_are_gone_and_other_pairs_are_none(bank: Path, tmp_path: Path, level: str) -> None:
    (tmp_path / "rings.json").write_text(json.dumps(molecules()))
    modality, dataset = fitted(bank if level == "node" else tmp_path / "rings.json")
    view = modality.prepare(batch_of(modality, dataset, list(range(8))))
    links = modality.links(view, draw_of(view), 0.5)
    linked = augment.adjacency(view)
    for row in range(8):
        real = view.extra["edges"][row][:, 0] >= 0
        left = links.view.extra["edges"][row]
        assert ((left[:, 0] < 0) == (links.hidden[row] | ~real)).all()
        if links.others is not None:
            for a, b in links.others[row][links.apart[row]].tolist():
                assert a != b
                assert linked[row, a, b] == 0
    assert 0.3 < links.hidden.sum() / (view.extra["edges"][..., 0] >= 0).sum() < 0.7
    assert links.apart.any()
    assert (links.others is None) == (level == "node")  # a neighbourhood has nothing in it that is far away


def test_masks_hide_the_same_share_of_every_sample(bank: Path) -> None:
    modality, dataset = fitted(bank)
    view = modality.prepare(batch_of(modality, dataset, list(range(10))))
    mask = modality.sample_mask(view, draw_of(view), 0.5)
    valid = augment.real_nodes(view)
    assert valid is not None
    assert not (mask & ~valid).any()
    assert ((mask.sum(dim=1) - valid.sum(dim=1) / 2).abs() <= 0.5).all()
    swapped, hidden = modality.hide(view, mask, draw_of(view))
    assert (hidden <= mask).all()
    changed = (swapped.data.nan_to_num() != view.data.nan_to_num()).any(dim=2)
    assert (changed <= (mask & ~hidden)).all()


def test_defaults_follow_what_a_sample_is(bank: Path) -> None:
    budget = Budget(60.0, 1e11, False)
    chosen = [
        {choice.key: choice.value for choice in modality.defaults(dataset.describe(), budget)}
        for modality, dataset in (fitted(bank), fitted(molecules()))
    ]
    assert [(c["method"], c["encoder"]) for c in chosen] == [("grace", "pyg:gcn"), ("graphmae", "pyg:gin")]


def test_raw_features_know_no_network(bank: Path) -> None:
    modality, dataset = fitted(bank)
    train, test = modality.raw_features(dataset, [dataset])
    assert train.shape[0] == 30
    assert np.isfinite(train).all()
    np.testing.assert_array_equal(train, test)


# ---- bad input


def write(folder: Path, edges: str, nodes: str = "") -> Path:
    (folder / "edges.csv").write_text(edges)
    if nodes:
        (folder / "nodes.csv").write_text(nodes)
    return folder


@pytest.mark.parametrize(
    ("edges", "nodes", "words"),
    [
        ("source,target\na,b\na,c\n", "id,x\na,1\nb,2\n", r"1 edge\(s\) to a node that does not exist, such as 'c'"),
        ("source,target\na,a\n", "", "no edge between two different nodes"),
        ("source,target\na,b\n", "id,x\na,1\na,2\nb,3\n", "repeats in its column 'id'"),
        ("payer,payee,amount\na,b,3\n", "", "no pair of columns names two ends"),
        ("source,target\na,b\n", "colour,x\nred,1\n", "No column of the nodes' table holds the names"),
        ("source,target\na,b\n", "id,graph\na,1\nb,2\n", r"1 edge\(s\) from one graph to another"),
    ],
)
def test_bad_tables_are_refused_in_a_sentence(tmp_path: Path, edges: str, nodes: str, words: str) -> None:
    with pytest.raises(LabelfreeError, match=words) as error:
        Graph().open(write(tmp_path, edges, nodes))
    assert error.value.remedy


@pytest.mark.parametrize("nodes", ["", "id,x\na,1\nb,2\nc,3\n"])
def test_an_edge_with_an_empty_end_is_left_out_and_counted(tmp_path: Path, nodes: str) -> None:
    dataset = Graph().open(write(tmp_path, "source,target,w\na,b,1\nb,,2\n,c,3\nb,c,4\n", nodes))
    assert dataset.graphs.edges.tolist() == [[0, 1], [1, 2]]
    assert dataset.describe().facts["edges with an empty end left out"] == "2"
    with pytest.raises(LabelfreeError, match="no edge between two different nodes" if nodes else "has no node"):
        Graph().open(write(tmp_path, "source,target\na,\n,b\n", nodes))


def ring(folder: Path, odd: str) -> Path:
    """A ring of 50 nodes and their weights, of which one is `odd`."""
    folder.mkdir()
    weights = "".join(f"{node},{odd if node == 3 else node / 4}\n" for node in range(50))
    return write(
        folder, "source,target\n" + "".join(f"{n},{(n + 1) % 50}\n" for n in range(50)), f"id,weight\n{weights}"
    )


def test_one_odd_cell_leaves_a_column_of_numbers_a_feature(tmp_path: Path) -> None:
    modality = Graph()
    whole, odd = modality.open(ring(tmp_path / "whole", "0.75")), modality.open(ring(tmp_path / "odd", "?"))
    first = Graph().open(tmp_path / "odd")
    for dataset in (odd, first):
        assert np.isnan(dataset.graphs.features[3, 0])
        np.testing.assert_array_equal(np.delete(dataset.graphs.features, 3, 0), np.delete(whole.graphs.features, 3, 0))
    (tmp_path / "odd" / "nodes.csv").write_text("id,weight\n" + "".join(f"{n},w{n}\n" for n in range(50)))
    with pytest.raises(LabelfreeError, match="Column 'weight' holds words, and not numbers as in training"):
        modality.open(tmp_path / "odd")


def test_nodes_may_be_called_anything(tmp_path: Path) -> None:
    graph = Graph().open(write(tmp_path, "source,target\n²,a\n②,²\n"))
    assert graph.graphs.names is not None
    assert sorted(graph.graphs.names) == ["a", "²", "②"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"edge_index": np.array([[0, 9], [1, 2]]), "x": np.zeros((3, 2))}, "such as '9'"),
        ({"edge_index": np.array([0.5, 1.5])}, "expected edge_index"),
        ({"x": np.zeros((3, 2))}, "no array of edges"),
        (object(), "holds no graph"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(source: Any, words: str) -> None:
    with pytest.raises(LabelfreeError, match=words) as error:
        Graph().open(source)
    assert error.value.remedy


def test_a_broken_graph_among_many_is_left_out_and_listed() -> None:
    graphs = molecules()
    graphs[3]["edges"][0] = [0, 99]
    graphs[5]["nodes"], graphs[5]["edges"], graphs[5]["edge_labels"] = [], [], []
    graphs[6]["edges"] = [[0, "a"]]
    graphs[7]["edges"] = [[0, 1, 2]]
    graphs[8]["edges"] = [[0, 1], [2]]
    graphs[9]["edges"] = None
    graphs[10]["nodes"] = [[1, 2]] * 6
    graphs[11] = None  # type: ignore[call-overload]
    _, dataset = fitted(graphs)
    bad = [item for item in dataset.read(range(12)) if isinstance(item, Unreadable)]
    no_pairs = "its edges are no pairs of node numbers"
    assert [(item.index, item.reason) for item in bad] == [
        (3, "an edge leads to node 99, which does not exist"),
        (5, "it has no node"),
        *((number, no_pairs) for number in (6, 7, 8, 9)),
        (10, "its 'nodes' have another shape than those of the graphs before it"),
        (11, "it is no object with nodes and edges"),
    ]
    assert dataset.column("y")[[0, 1, 2, 4]].tolist() == [0, 1, 0, 0]
    assert len(Graph(GraphSettings.read({"level": "node"}, "graph")).open(graphs)) == 4 + 5 + 6 + 8


def test_graphs_that_are_all_broken_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps([{"nodes": [1, 2], "edges": [[0, 5]]}, {"edges": None}]))
    with pytest.raises(LabelfreeError, match=r"None of the 2 graphs can be used; graph 0: an edge leads to node 5"):
        Graph().open(path)


def test_an_edge_to_no_node_breaks_its_own_graph(tmp_path: Path) -> None:
    write(tmp_path, "source,target\na,b\nc,d\nd,x\n", "id,x,graph\na,1,g\nb,2,g\nc,1,h\nd,2,h\n")
    assert Graph().open(tmp_path).graphs.broken == {1: "an edge leads to a node that does not exist"}


def test_node_link_json_is_read_by_the_ids_of_its_nodes(tmp_path: Path) -> None:
    nodes = [{"id": name, "size": size} for name, size in (("b", 1.5), ("a", 2.5), ("c", 4.0))]
    links = [{"source": "a", "target": "b", "weight": 0.5}, {"source": "c", "target": "b", "weight": 2.0}]
    graph = {"directed": False, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(graph))
    assert recognise(path)[0] == "graph"
    modality, dataset = fitted(path)
    assert dataset.graphs.edges.tolist() == [[0, 1], [0, 2]]
    assert (modality.width, modality.edge_width) == (1, 1)
    graph["links"] = [*links, {"source": "c", "target": "z", "weight": 0.0}]
    path.write_text(json.dumps(graph))
    with pytest.raises(LabelfreeError, match="an edge leads to node 'z', which does not exist"):
        Graph().open(path)


def test_ends_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "payments.csv"
    path.write_text("payer,payee,amount\na,b,1\nb,c,2\nc,a,5\n")
    modality, dataset = fitted(path, ends="payer,payee")
    assert (len(dataset), modality.edge_width) == (3, 1)
    with pytest.raises(LabelfreeError, match="names the column 'pay'"):
        Graph(GraphSettings.read({"ends": "pay,payee"}, "graph")).open(path)


def test_isolated_nodes_are_samples_of_one_node() -> None:
    source = {"edge_index": np.array([[0, 1], [1, 2]]), "x": np.random.default_rng(0).normal(size=(5, 3))}
    modality, dataset = fitted(source)
    batch = batch_of(modality, dataset, [3, 4])
    assert batch.data.shape == (2, 1, 3)
    assert dataset.describe().facts["without an edge"] == "2 nodes"
    assert not modality.links(modality.prepare(batch), draw_of(batch), 0.5).hidden.any()


def test_a_folder_with_one_file_of_graphs_is_that_file(tmp_path: Path) -> None:
    ends = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
    arrays, several, both = (tmp_path / name for name in ("arrays", "several", "both"))
    for folder in (arrays, several, both):
        folder.mkdir()
    for folder in (arrays, both):
        np.savez(folder / "graph.npz", edge_index=ends, x=np.eye(4, 3), y=np.arange(4))
    graphs = json.dumps([{"edges": ends.T.tolist(), "label": n} for n in range(5)])
    for folder in (several, both):
        (folder / "graphs.json").write_text(graphs)
    (arrays / "README.md").write_text("where it is from")
    assert recognise(arrays) == ("graph", "an array of edges in 'graph.npz'")
    assert recognise(several) == ("graph", "graphs as JSON in 'graphs.json'")
    assert len(Graph().open(arrays)) == 4
    assert len(Graph().open(several)) == 5
    with pytest.raises(LabelfreeError, match="no table of edges, nor is one file"):
        Graph().open(both)


def test_arrays_of_edges_are_no_series() -> None:
    arrays = {"edge_index": np.zeros((2, 50), np.int64), "x": np.zeros((20, 3), np.float32)}
    assert Series.recognise(arrays) == (0.0, "")


def test_what_graphmae_hid_and_gives_back_is_kept_for_the_report(tmp_path: Path) -> None:
    source, run = tmp_path / "rings.json", tmp_path / "run"
    source.write_text(json.dumps(molecules()))
    labelfree.pretrain(source, method="graphmae", encoder="transformer:pico", out=run, steps=2, threads=1, swap=0.0)
    found = json.loads((run / "reconstructions.json").read_text())["samples"]
    assert len(found) == 12
    for row in found:
        fills = [re.findall(r'<circle[^>]* fill="([^"]+)"', row[key]) for key in ("sample", "seen", "given_back")]
        given, seen, back = fills
        assert "white" not in [*given, *back], "all nodes have features, their own or predicted ones"
        assert 0 < seen.count("white") < len(seen)
        assert all(a == b == c for a, b, c in zip(given, seen, back, strict=True) if b != "white")
        places = [re.findall(r'c[xy]="([^"]+)"', row[key]) for key in ("sample", "seen", "given_back")]
        assert places[0] == places[1] == places[2]


@pytest.mark.parametrize(("error", "size"), [("cosine", 5.0), ("squared", 1.0)])
def test_predicted_nodes_are_as_large_as_they_are_where_only_directions_are_learnt(error: str, size: float) -> None:
    nodes = [[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [-4.0, -5.0]]
    modality, dataset = fitted([{"nodes": nodes, "edges": [[0, 1], [1, 2]]}] * 2, node_error=error)
    modality._scale = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    view = modality.prepare(batch_of(modality, dataset, [0, 1]))
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, 0] = True
    for sample in modality.rebuild(view, torch.tensor([0.0, -1.0]).expand(2, 4, 2), mask):
        np.testing.assert_allclose(sample.data, [[0, -size], *nodes[1:]], atol=1e-6)
