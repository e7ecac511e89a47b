"""What the report shows of the features: a map of the test part, and nearest neighbours as people look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data.batch import Sample
from labelfree.evaluation.bench import Bench, Features
from labelfree.evaluation.projection import components
from labelfree.files import write_json
from labelfree.modalities.base import Modality
from labelfree.tasks.labels import Part

#: Points of the map, rows of neighbours, neighbours a row, and characters of HTML that looking at points may cost.
POINTS, ROWS, NEAR, SHOWN = 1000, 8, 6, 800_000


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
