"""What the report shows of the features: a map of the test part, and nearest neighbours as people look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data.batch import Sample
from labelfree.evaluation.bench import Bench, Features
from labelfree.files import write_json
from labelfree.modalities.base import Modality
from labelfree.tasks.labels import Part

#: Points of the map, rows of neighbours, neighbours a row, and characters of HTML that looking at points may cost.
POINTS, ROWS, NEAR, SHOWN = 1000, 8, 6, 800_000
#: Principal components that the map is drawn from, and points that t-SNE needs.
COMPONENTS, FEWEST = 30, 30


def write_gallery(path: Path, modality: Modality, bench: Bench) -> None:
    """Write what the map is drawn from, and the neighbours, as JSON, so that the report does not need the source."""
    assert bench.features is not None
    features, test = bench.features, bench.test
    rng = np.random.default_rng(0)
    places = np.sort(rng.permutation(len(test))[:POINTS])
    content = {
        "classes": list(bench.parts.classes),
        "map": {
            "components": np.round(components(features.test[places]), 5).tolist(),
            "y": test.y[places].tolist(),
            "names": test.names(places),
            "html": _shown(modality, test, places),
        },
        "neighbours": neighbours(modality, bench.train.only(features.places), test, features, rng),
    }
    write_json(path, content)


def components(x: np.ndarray) -> np.ndarray:
    """(N, D) features → (N, at most `COMPONENTS`) principal components of their directions, the largest first."""
    x = np.asarray(x, dtype=np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (left * values)[:, :COMPONENTS]


def project(x: np.ndarray) -> tuple[np.ndarray, str]:
    """(N, K) components → (N, 2) the map, and how it is drawn: t-SNE that starts from the first two (van der Maaten &
    Hinton 2008), or those alone where points are few or all alike.
    """
    start = np.pad(x, ((0, 0), (0, 2)))[:, :2]
    spread = float(start[:, 0].std())
    if len(x) < FEWEST or spread < 1e-4:
        return start, "PCA"
    from sklearn.manifold import TSNE

    # this scale of the start is the one that is recommended
    drawn = TSNE(perplexity=min(30.0, len(x) / 4), init=start / spread * 1e-4, random_state=0, max_iter=500, n_jobs=1)
    return drawn.fit_transform(x.astype(np.float32)), "t-SNE"


def _shown(modality: Modality, part: Part, places: np.ndarray) -> list[str]:
    """HTML of each point, '' beyond what the report may weigh."""
    out: list[str] = []
    spent = 0
    for item in part.dataset.read(part.rows[places].tolist()):
        out.append(modality.show(item) if isinstance(item, Sample) and spent < SHOWN else "")
        spent += len(out[-1])
    return out


def neighbours(
    modality: Modality,
    train: Part,
    test: Part,
    features: Features,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """For a few test samples of different classes: the training samples nearest by cosine."""
    order = rng.permutation(len(test))
    firsts = {int(test.y[place]): place for place in order[::-1]}
    asked = list(dict.fromkeys([*firsts.values(), *order]))[:ROWS]
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features.train, features.test)]
    rows = []
    for place in asked:
        similarity = unit[0] @ unit[1][place]
        near = np.argsort(-similarity, kind="stable")[:NEAR]
        entry = _entry(modality, test, place)
        entry["near"] = [{**_entry(modality, train, i), "similarity": round(float(similarity[i]), 3)} for i in near]
        rows.append(entry)
    return rows


def _entry(modality: Modality, part: Part, place: int) -> dict[str, Any]:
    item = part.dataset.shown([int(part.rows[place])])[0]
    html, row = (modality.show(item), modality.row(item)) if isinstance(item, Sample) else ("", {})
    return {"name": part.names(np.array([place]))[0], "y": int(part.y[place]), "html": html, "row": row}
