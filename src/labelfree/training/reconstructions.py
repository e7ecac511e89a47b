"""What a method gives back of samples, or makes anew, as a person looks at it; for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from labelfree.data.batch import Sample
from labelfree.data.dataset import Dataset
from labelfree.data.draw import Draw
from labelfree.data.spread import spaced
from labelfree.errors import Refusal
from labelfree.files import write_json
from labelfree.objectives.base import Objective

if TYPE_CHECKING:
    from labelfree.run import Run

#: Samples that are shown, and those that are made anew.
SHOWN, IMAGINED = 12, 20


def write_reconstructions(run: Run, dataset: Dataset) -> None:
    """Write `reconstructions.json` into the run's folder: a few samples that `dataset`, the training set, holds, what
    the encoder saw of them and what came back; and samples that never were. Nothing where the method makes neither.
    """
    rows = spaced(len(dataset), IMAGINED)
    samples = [item for item in dataset.read(rows.tolist()) if isinstance(item, Sample)]
    modality = run.modality
    if not samples:
        return
    try:
        modality.rebuild(modality.prepare(modality.collate(samples)))
    except Refusal:  # this kind of data cannot be shown as it is predicted
        return
    objective = run.maker()
    content = {"samples": _given_back(objective, samples[:SHOWN]), "imagined": _imagined(objective, samples)}
    if any(content.values()):
        write_json(run.path / "reconstructions.json", content)


@torch.no_grad()
def _given_back(objective: Objective, samples: list[Sample]) -> list[dict[str, Any]]:
    modality = objective.modality
    batch = modality.collate(samples)
    try:
        found = objective.reconstruct(batch, Draw.start(0, 0, 0, batch.index))
    except Refusal:
        return []
    nothing = torch.full_like(found.prediction, torch.nan)
    parts = (
        modality.rebuild(found.view),
        modality.rebuild(found.shown, None if found.hidden is None else nothing, found.hidden),
        modality.rebuild(found.view, found.prediction, found.asked),
    )
    rows = zip(*(map(modality.show, part) for part in parts), strict=True)
    return [
        {"sample": sample, "seen": seen if seen != sample else "", "given_back": back} for sample, seen, back in rows
    ]


@torch.no_grad()
def _imagined(objective: Objective, samples: list[Sample]) -> list[str]:
    modality = objective.modality
    view = modality.prepare(modality.collate(samples))
    try:
        made = objective.sample(view, Draw.start(0, 0, 0, view.index))
    except Refusal:
        return []
    return [modality.show(sample) for sample in modality.rebuild(view, made)]
