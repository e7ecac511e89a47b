"""Every (objective, modality) cell with tiny data, put together by the engine's own parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelfree import registry
from labelfree.distributed import rank, world_size
from labelfree.training import job as jobs
from labelfree.training.loop import Training
from labelfree.training.plan import make_plan, resolve_machine

#: Heads small enough for a test; everything else is as users get it.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "simclr": {"projector": (64, 32)},
    "vicreg": {"expander": (64, 64)},
    "byol": {"projector": (64, 32), "predictor": (64,)},
    "masked": {"decoder_width": 64, "decoder_depth": 1},
    "cpc": {"horizon": 3, "negatives": 32},
    "pretext": {"learning_rate": 3e-3},
}
#: What can be learnt in a few steps: whether two sentences are in order, not whether one follows another; that two
#: crops are of one wave if they are nearly as long.
TASKS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("text", "pretext"): {"transformation": "order", "learning_rate": 5e-3},
    ("series", "simclr"): {"crop": 0.8},
}
#: Views small enough for a test.
VIEWS: Mapping[str, Mapping[str, Any]] = {
    "image": {"size": 16, "patch": 4},
    "series": {"patch": 4},
    "text": {"length": 16},
}
#: Steps that a cell gets; recognising a transformation, or one view among many, dawns late.
STEPS: Mapping[str, int] = {"pretext": 48, "simclr": 32}
USUAL_STEPS = 16
BATCH = 16


def pictures(folder: Path) -> Path:
    """64 pictures of a bright disc, somewhere in the upper half, on a slope of light from above."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    found = []
    for _ in range(64):
        centre, radius, colour = generator.uniform((2, 3), (7, 13)), generator.uniform(1, 4), generator.uniform(0, 1, 3)
        disc = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2)[..., None]
        found.append(np.where(disc, 255 * colour, (200 - 10 * y)[..., None]) + generator.normal(0, 4, (16, 16, 3)))
    path = folder / "pictures.npy"
    np.save(path, np.array(found).clip(0, 255).astype(np.uint8))
    return path


def series(folder: Path) -> Path:
    """64 rising waves of two channels, of different frequency, phase and length, with a few values missing."""
    generator = np.random.default_rng(0)
    time = np.linspace(0, 1, 64)
    found = np.empty((64, 64, 2), dtype=np.float32)
    for row in found:
        rate, phase = generator.uniform(1, 6), generator.uniform(0, 6)
        row[:, 0] = np.sin(6.28 * rate * time + phase) + time
        row[:, 1] = np.sign(np.cos(6.28 * rate * time + phase)) * (0.2 + time)
        row += generator.normal(0, 0.05, row.shape)
        row[generator.integers(0, 64, 3), 0] = np.nan
    found[:8, 50:] = np.nan
    path = folder / "series.npy"
    np.save(path, found)
    return path


def texts(folder: Path) -> Path:
    """Paragraphs that count, each sentence with one thing in it, so that neighbours belong together."""
    generator = np.random.default_rng(0)
    things = ("apple", "river", "engine", "winter", "window", "horse", "letter", "garden")
    lines = []
    for _ in range(160):
        thing, first = generator.choice(things), int(generator.integers(1, 5))
        lines.append(" ".join(f"The {thing} number {first + n} is here." for n in range(4)))
    path = folder / "texts.txt"
    path.write_text("\n\n".join(lines))
    return path


SOURCES: Mapping[str, Callable[[Path], Path]] = {"image": pictures, "series": series, "text": texts}

#: An encoder of every make besides the shared transformer.
OTHERS: Mapping[str, tuple[str, ...]] = {
    "image": ("timm:test_resnet",),
    "series": ("dilated",),
    "text": ("hf:bert-tiny",),
}


#: Networks that cannot do what a method needs: no tokens to hide in a convolution, no causal order in it or in BERT.
CANNOT = {
    "timm:test_resnet": {"masked", "next", "cpc"},
    "hf:bert-tiny": {"next", "cpc"},
}


def make_sources(folder: Path) -> dict[str, Path]:
    return {kind: make(folder) for kind, make in SOURCES.items()}


def encoders(kind: str) -> tuple[str, ...]:
    return ("transformer:nano", *OTHERS.get(kind, ()))


def every_cell() -> list[tuple[str, str, str]]:
    """(modality, objective, encoder), all that Labelfree itself has (other tests register their own)."""
    return [
        (kind, method, encoder)
        for kind in own(registry.modalities())
        for method in own(registry.objectives())
        for encoder in encoders(kind)
    ]


def own(entries: Mapping[str, type]) -> list[str]:
    return [name for name, cls in entries.items() if cls.__module__.startswith("labelfree.")]


def fits(kind: str, method: str, encoder: str) -> bool:
    gaps = registry.missing(registry.objectives()[method], registry.modalities()[kind])
    return not gaps and method not in CANNOT.get(encoder, ())


def steps_of(method: str) -> int:
    return STEPS.get(method, USUAL_STEPS)


def assemble(source: Path, kind: str, method: str, encoder: str) -> Training:
    """This process's training of a cell. Raises Refusal where the three do not fit."""
    cls, _ = registry.method(method)
    settings = {"batch_size": BATCH, "precision": "32", "threads": 1, "cache": "memory", "warmup": 1}
    tiny = {**SMALL.get(cls.name, {}), **VIEWS.get(kind, {}), **TASKS.get((kind, method), {})}
    plan, data, dataset, _ = make_plan(
        str(source), modality=kind, method=method, encoder=encoder, seed=0, seconds=None, settings=settings | tiny
    )
    data.fit(dataset)
    nearby, plan = jobs.near(data.training_set(dataset, cls.needs), data, plan)
    plan = resolve_machine(jobs.fit_batch(plan, len(nearby), world_size()), streamed=False)
    objective = jobs.build_objective(plan, data, nearby, None, None)
    job = jobs.Job(plan.model_copy(update={"steps": steps_of(method)}), data, nearby, objective)
    return jobs.new_training(job, torch.device("cpu"), rank(), world_size())
