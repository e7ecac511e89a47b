"""What a method gives back of samples, makes anew, or goes on with, as a person looks at it; for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labelfree.data.batch import Sample
from labelfree.data.dataset import Dataset
from labelfree.data.draw import Draw
from labelfree.data.spread import spaced
from labelfree.errors import Refusal
from labelfree.files import write_json
from labelfree.needs import Need
from labelfree.objectives.base import Objective
from labelfree.tasks.generate import write_on

if TYPE_CHECKING:
    from labelfree.run import Run

#: Samples that are given back, made anew, and gone on with; of the latter so many tokens at most.
SHOWN, IMAGINED, CONTINUED, TOKENS = 12, 20, 6, 64


def write_reconstructions(run: Run, dataset: Dataset) -> None:
    """Write `reconstructions.json` into the run's folder: a few samples that `dataset`, the training set, holds, what
    the encoder saw of them and what came back; samples that never were; and beginnings of samples, and how they go on
    by the model. Nothing where the method makes none of it.
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
    content = {
        "samples": _given_back(objective, samples[:SHOWN]),
        "imagined": _imagined(objective, samples),
        "continued": _continued(run, samples[:CONTINUED]),
    }
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


def _continued(run: Run, samples: list[Sample]) -> list[dict[str, str]]:
    go_on = _written if Need.IDS in run.modality.offers else _forecast
    try:
        return [
            dict(zip(("sample", "beginning", "continued"), map(run.modality.show, go_on(run, sample)), strict=True))
            for sample in samples
        ]
    except Refusal:
        return []


def _written(run: Run, sample: Sample) -> list[Sample]:
    """A sample of ids as far as it is gone on with, its first half, and what the model writes after that half."""
    half = max(1, min(TOKENS, len(sample.data) // 4))
    whole, beginning = sample.data[: 2 * half], sample.data[:half]
    ids = write_on(run, beginning.tolist(), half, seed=sample.index, accelerator="cpu")
    return [Sample(part, sample.index) for part in (whole, beginning, np.array(ids, whole.dtype))]


@torch.no_grad()
def _forecast(run: Run, sample: Sample) -> list[Sample]:
    """A sample of values, its beginning, and this with what is forecast after it."""
    beginning = run.modality.beginning(sample)
    ahead = sample.data[len(beginning.data) :]
    future = run.modality.continued(run.maker().predict_next, [beginning], len(ahead))[0]
    parts = (sample.data, *(np.concatenate([beginning.data, rest]) for rest in (np.full_like(ahead, np.nan), future)))
    return [Sample(part, sample.index) for part in parts]
