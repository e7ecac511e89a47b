"""Statistics of graphs: for normalising, for classical models, for people."""

from __future__ import annotations

import math

import numpy as np

from labelfree.data.batch import Sample

_COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00")
_SIZE, _MOST, _ROUNDS, _BINS = 160, 120, 60, 8


def scale_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) mean and (F,) deviation of (N, F); 0 and 1 for columns of nothing but 0 and 1, and a deviation of 1 for
    constant ones.
    """
    # Column by column: copies of a table of a million nodes would be what takes most memory.
    found = [_scale_of_column(values[:, column]) for column in range(values.shape[1])]
    mean, std = np.array(found).reshape(-1, 2).T
    return mean, std


def _scale_of_column(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known) or ((known == 0) | (known == 1)).all():
        return 0.0, 1.0
    std = float(known.std())
    return float(known.mean()), std if std >= 1e-8 else 1.0


def summary(sample: Sample, x: np.ndarray, roots: int) -> np.ndarray:
    """Features of one graph without a network: its roots (or the sum of its nodes), the mean of all nodes, how many
    nodes and edges there are and of which degree, the mean of the edges' attributes.

    Args:
        sample: with its edges.
        x: (n, F) normalised features of its nodes.
        roots: nodes that the sample is about; 0 for all.
    """
    edges = sample.extra["edges"]
    degree = np.bincount(edges[edges[:, 0] >= 0].ravel(), minlength=len(x))
    histogram = np.bincount(degree.clip(max=_BINS - 1), minlength=_BINS)
    about = x[:roots].mean(axis=0) if roots else x.sum(axis=0)
    own = degree[: roots or len(degree)].mean()
    counts = [math.log1p(len(x)), math.log1p(len(edges)), math.log1p(own), *(histogram / len(x))]
    attributes = sample.extra.get("attributes")
    kinds = () if attributes is None or not len(attributes) else np.nan_to_num(attributes).mean(axis=0)
    if attributes is not None and not len(attributes):
        kinds = np.zeros(attributes.shape[1])
    return np.concatenate([about, x.mean(axis=0), counts, kinds]).astype(np.float32)


def structure(sample: Sample, x: np.ndarray, levels: int = 4, width: int = 32) -> np.ndarray:
    """(2 · levels · width + 2,) what is around the nodes of a graph, so that the same parts arranged otherwise differ.

    Means and deviations over the nodes of random features, which take in one more ring of neighbours a level: a graph
    network without training (Kipf & Welling 2017, appendix A).

    Args:
        sample: with its edges.
        x: (n, F) normalised features of its nodes.
    """
    edges, attributes = sample.extra["edges"], sample.extra.get("attributes")
    known = edges[:, 0] >= 0
    kinds = np.zeros((len(edges), 0)) if attributes is None else np.nan_to_num(attributes)
    a, b = np.concatenate([edges[known], edges[known][:, ::-1]]).T
    kinds = np.concatenate([kinds[known], kinds[known]])
    h = np.concatenate([x, np.log1p(np.bincount(a, minlength=len(x)))[:, None]], axis=1)
    rng, found = np.random.default_rng(0), [np.log1p([len(x), known.sum()])]
    for _ in range(levels):
        heard = np.concatenate([h[a], kinds], axis=1)
        heard = np.tanh(heard @ rng.normal(size=(heard.shape[1], width)) * 4 / math.sqrt(heard.shape[1]))
        own = h @ rng.normal(size=(h.shape[1], width)) / math.sqrt(h.shape[1])
        np.add.at(own, b, heard)
        h = np.tanh(own)
        found += [h.mean(axis=0), h.std(axis=0)]
    return np.concatenate(found).astype(np.float32)


def drawing(nodes: np.ndarray, edges: np.ndarray, roots: int) -> str:
    """An SVG of a graph of (n, F) nodes; colours say which feature is the largest, and nodes of which no feature is
    known are hollow; the roots are ringed.
    """
    count = min(len(nodes), _MOST)
    edges = edges[(edges < count).all(axis=1) & (edges[:, 0] >= 0)]
    place = _layout(count, edges)
    lines = "".join(
        f'<line x1="{place[a, 0]:.1f}" y1="{place[a, 1]:.1f}" x2="{place[b, 0]:.1f}" y2="{place[b, 1]:.1f}"/>'
        for a, b in edges.tolist()
    )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if number < roots else 3}" {_paint(nodes[number], number < roots)}/>'
        for number, (x, y) in enumerate(place.tolist())
    )
    title = f"{len(nodes):,} nodes" + (f", {count} shown" if count < len(nodes) else "")
    return (
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" width="{_SIZE}" height="{_SIZE}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{title}</title><g stroke="#999">{lines}</g>{dots}</svg>'
    )


def _paint(features: np.ndarray, root: bool) -> str:
    """What a node of (F,) features is filled and ringed with."""
    known = ~np.isnan(features)
    fill = _COLOURS[np.where(known, features, -np.inf).argmax() % 8] if known.any() else "white"
    ring = "black" if root else "" if known.any() else "#999"
    return f'fill="{fill}"' + (f' stroke="{ring}"' if ring else "")


def _layout(count: int, edges: np.ndarray) -> np.ndarray:
    """(n, 2) places in the picture: linked nodes attract, all repel (Fruchterman & Reingold 1991)."""
    angle = np.arange(count) * 2.399963  # the golden angle: no two nodes begin at one place
    place = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(np.arange(count) + 1)[:, None]
    side = math.sqrt(count) + 1
    for step in range(_ROUNDS):
        apart = place[:, None] - place[None]
        square = np.maximum((apart**2).sum(axis=2), 1e-3)
        force = (apart / square[..., None]).sum(axis=1)
        along = place[edges[:, 0]] - place[edges[:, 1]]
        pull = along * np.linalg.norm(along, axis=1, keepdims=True)
        np.add.at(force, edges[:, 0], -pull)
        np.add.at(force, edges[:, 1], pull)
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        place = place + force / length * np.minimum(length, side * 0.15 * (1 - step / _ROUNDS))
    low, high = place.min(axis=0), place.max(axis=0)
    return 8 + (place - low) / np.maximum(high - low, 1e-9) * (_SIZE - 16)
