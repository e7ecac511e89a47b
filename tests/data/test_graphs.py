"""Neighbourhoods and features of structure, against slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelfree.data.graphs import Graphs, Neighbours, degrees, neighbourhoods, positions, returns


def random_edges(nodes: int, share: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pairs = [(a, b) for a, b in itertools.combinations(range(nodes), 2) if generator.random() < share]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def one(nodes: int, edges: np.ndarray, code: np.ndarray | None = None) -> Graphs:
    none = np.zeros((nodes, 0), np.float32), np.zeros((len(edges), 0), np.float32)
    ends = np.array([0, nodes]), np.array([0, len(edges)])
    return Graphs(none[0], edges, none[1], *ends, np.arange(nodes, dtype=np.uint64) if code is None else code)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.floats(0, 1), st.integers(1, 6), st.integers(1, 4))
def test_a_neighbourhood_is_a_subgraph_around_its_roots(nodes: int, share: float, near: int, far: int) -> None:
    edges = random_edges(nodes, share)
    lists = Neighbours.of(edges, nodes)
    found = neighbourhoods(lists, np.arange(nodes)[:, None], np.arange(nodes, dtype=np.uint64), (near, far))
    linked = set(map(tuple, edges.tolist()))
    for root in range(nodes):
        own = found.node[found.first[root] : found.first[root + 1]]
        assert own[0] == root
        assert len(set(own.tolist())) == len(own) <= 1 + near + near * far
        rows = slice(found.first_edge[root], found.first_edge[root + 1])
        pairs = {tuple(sorted((int(own[a]), int(own[b])))) for a, b in found.ends[rows]}
        assert pairs == {pair for pair in itertools.combinations(sorted(own.tolist()), 2) if pair in linked}
        assert [tuple(edge) for edge in edges[found.edge[rows]].tolist()] == [
            tuple(sorted((int(own[a]), int(own[b])))) for a, b in found.ends[rows]
        ]
        hops = min(len([1 for edge in linked if root in edge]), near)
        assert sum(tuple(sorted((root, int(node)))) in linked for node in own[1:]) >= hops


@pytest.mark.parametrize("share", [0.5, 0.9])  # of .9 nodes have more neighbours than are looked through
def test_a_neighbourhood_depends_on_its_root_alone(share: float) -> None:
    lists = Neighbours.of(random_edges(60, share), 60)
    roots, key = np.arange(60)[:, None], np.arange(60, dtype=np.uint64)
    together = neighbourhoods(lists, roots, key, (5, 3))
    alone = neighbourhoods(lists, roots[17:18], key[17:18], (5, 3))
    np.testing.assert_array_equal(together.node[together.first[17] : together.first[18]], alone.node)
    np.testing.assert_array_equal(together.ends[together.first_edge[17] : together.first_edge[18]], alone.ends)


def test_many_neighbours_are_drawn_evenly_and_without_repeats() -> None:
    star = np.stack([np.zeros(100, np.int64), np.arange(1, 101)], axis=1)
    lists = Neighbours.of(star, 101)
    rows, place = lists.draw(np.zeros(3000, np.int64), np.arange(3000, dtype=np.uint64), 10)
    drawn = lists.target[place].reshape(3000, 10)
    assert (np.bincount(rows) == 10).all()
    assert all(len(set(row)) == 10 for row in drawn[:100].tolist())
    counts = np.bincount(drawn.ravel(), minlength=101)[1:]
    assert abs(counts - 300).max() < 5 * np.sqrt(300)


def test_a_hub_costs_no_more_than_any_node() -> None:
    star = np.stack([np.zeros(5000, np.int64), np.arange(1, 5001)], axis=1)
    found = neighbourhoods(Neighbours.of(star, 5001), np.array([[0], [7]]), np.arange(2, dtype=np.uint64), (4, 2))
    assert np.diff(found.first).tolist() == [5, 4]
    assert np.diff(found.first_edge).tolist() == [4, 3]


def test_returns_are_those_of_dense_powers() -> None:
    edges = random_edges(12, 0.3)
    dense = np.zeros((12, 12))
    dense[tuple(edges.T)] = dense[tuple(edges.T[::-1])] = 1
    step = dense / np.maximum(dense.sum(axis=1, keepdims=True), 1)
    expected = [np.diag(np.linalg.matrix_power(step, k)) for k in range(2, 6)]
    np.testing.assert_allclose(returns(one(12, edges), 5), np.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(degrees(one(12, edges))[:, 0], np.log1p(dense.sum(axis=1)), atol=1e-6)


def test_positions_are_alike_where_walks_meet_and_follow_the_names_of_nodes() -> None:
    blocks = np.concatenate([random_edges(20, 0.5), random_edges(20, 0.5, 1) + 20, [[0, 20]]])
    found = positions(one(40, blocks), 64, 4)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[:20, :20].mean() > alike[:20, 20:].mean() + 0.3
    order = np.random.default_rng(0).permutation(40)
    place = np.argsort(order)
    moved = one(40, np.sort(place[blocks], axis=1), order.astype(np.uint64))
    np.testing.assert_allclose(positions(moved, 64, 4), found[order], atol=1e-5)
