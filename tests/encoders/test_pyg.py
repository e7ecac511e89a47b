"""Graph networks: each sample by itself, padding changes nothing, and nothing reaches hidden nodes' features."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from labelfree import registry
from labelfree.data.batch import Batch, Sample
from labelfree.encoders._geometric import geometric
from labelfree.encoders.base import Encoder
from labelfree.encoders.pyg import Union
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.graph import Graph, GraphSettings

KINDS = ("pyg:gcn-16x2", "pyg:sage-16x2", "pyg:gat-16x2", "pyg:gin-16x3", "transformer:nano")


def graphs() -> Graph:
    """Small graphs with attributes of edges, fitted."""
    generator = np.random.default_rng(0)
    found = []
    for size in (3, 6, 4, 5):
        edges = [[a, b] for a in range(size) for b in range(a) if a - b == 1 or generator.random() < 0.4]
        kinds = generator.normal(size=(len(edges), 2)).tolist()
        found.append({"nodes": generator.normal(size=(size, 3)).tolist(), "edges": edges, "edge_kind": kinds})
    modality = Graph(GraphSettings())
    modality.dataset = modality.open(found)  # type: ignore[attr-defined]
    modality.fit(modality.dataset)  # type: ignore[attr-defined]
    return modality


def view(modality: Graph, rows: list[int]) -> Batch:
    items = modality.dataset.read(rows)  # type: ignore[attr-defined]
    return modality.prepare(modality.collate([item for item in items if isinstance(item, Sample)]))


def build(spec: str, modality: Graph) -> Encoder:
    torch.manual_seed(0)
    return registry.build_encoder(spec, modality).eval()


@pytest.mark.parametrize("spec", KINDS)
def test_a_graph_alone_has_the_features_it_has_in_a_batch(spec: str) -> None:
    modality = graphs()
    encoder = build(spec, modality)
    together, alone = encoder(view(modality, [0, 1, 2, 3])), encoder(view(modality, [2]))
    torch.testing.assert_close(together.pooled[2], alone.pooled[0], atol=1e-5, rtol=1e-4)
    assert together.tokens is not None
    assert alone.tokens is not None
    torch.testing.assert_close(together.tokens[2, :4], alone.tokens[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", KINDS[:4])
def test_carrying_padding_along_changes_nothing(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU padding is not left out; here the same code runs on a CPU."""
    modality = graphs()
    encoder, batch = build(spec, modality), view(modality, [0, 1, 2, 3])
    expected = encoder(batch)
    monkeypatch.setattr("labelfree.encoders.pyg.counts", lambda x: False)
    torch.testing.assert_close(encoder(batch).pooled, expected.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", KINDS)
def test_features_of_hidden_nodes_are_not_seen(spec: str) -> None:
    modality = graphs()
    encoder, batch = build(spec, modality), view(modality, [1, 1])
    mask = torch.tensor([[True, False, True, False, False, False]] * 2)
    changed = batch.with_(data=torch.where(mask[..., None], batch.data + 5, batch.data))
    torch.testing.assert_close(encoder(changed, mask).pooled, encoder(batch, mask).pooled)
    assert not torch.allclose(encoder(changed).pooled, encoder(batch).pooled)


@pytest.mark.parametrize("spec", KINDS)
def test_edges_matter(spec: str) -> None:
    modality = graphs()
    encoder, batch = build(spec, modality), view(modality, [1])
    fewer = batch.with_(extra={**batch.extra, "edges": batch.extra["edges"].clone()})
    fewer.extra["edges"][0, 0] = -1
    assert not torch.allclose(encoder(batch).pooled, encoder(fewer).pooled, atol=1e-6)


@pytest.mark.parametrize("spec", KINDS[:4])
def test_features_do_not_depend_on_the_order_of_nodes(spec: str) -> None:
    modality = graphs()
    encoder, batch = build(spec, modality), view(modality, [1])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    moved = batch.with_(data=batch.data[:, order], extra={**batch.extra, "edges": place[batch.extra["edges"]]})
    torch.testing.assert_close(encoder(moved).pooled, encoder(batch).pooled, atol=1e-5, rtol=1e-4)


def test_gcn_is_the_library_s_on_each_graph() -> None:
    modality = graphs()
    encoder: Any = build("pyg:gcn-16x1", modality)
    batch = view(modality, [1])
    plain = geometric().GCNConv(3, 16)
    plain.load_state_dict(encoder.blocks[0].convolution.state_dict())
    ends = batch.extra["edges"][0].t()
    h = plain(batch.data[0], torch.cat([ends, ends.flip(0)], dim=1))
    torch.testing.assert_close(encoder(batch).tokens[0], encoder.acts[0](encoder.norms[0](h)))


def test_half_precision_works() -> None:
    modality = graphs()
    for spec in KINDS:
        encoder = build(spec, modality).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pooled = encoder(view(modality, [0, 1, 2])).pooled
        pooled.float().square().mean().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(values).all() for values in (pooled, *gradients))


@pytest.mark.parametrize("spec", ["pyg:gnn", "pyg:gcn-0x2", "pyg:gat-30x2", "pyg:gcn-64x2x3"])
def test_unknown_networks_are_refused(spec: str) -> None:
    with pytest.raises(LabelfreeError) as error:
        registry.build_encoder(spec, graphs())
    assert error.value.remedy or "there are" in error.value.problem


def test_other_kinds_of_data_are_refused() -> None:
    from labelfree.modalities.series import Series

    with pytest.raises(Refusal, match="is for graph"):
        registry.build_encoder("pyg:gcn", Series())


def test_the_package_missing_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    before = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return before(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LabelfreeError, match=r"pip install torch-geometric\."):
        geometric()


def test_attention_has_the_loops_that_pyg_would_give_it() -> None:
    modality = graphs()
    batch, layer = view(modality, [0, 1, 2, 3]), build("pyg:gat-16x1", modality).blocks[0]
    bare, looped = Union.of(batch), Union.for_kind("gat", batch)
    h = bare.take(batch.data.nan_to_num())
    found = layer(h, looped, None)
    layer.convolution.add_self_loops = True
    assert torch.equal(found, layer(h, bare, None))
