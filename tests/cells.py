"""Every (objective, modality) cell with tiny data, put together by the engine's own parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from labelfree import registry
from labelfree.distributed import rank, world_size
from labelfree.training import job as jobs
from labelfree.training.loop import Training
from labelfree.training.plan import make_plan

#: Heads small enough for a test; everything else is as users get it.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "simclr": {"projector": (64, 32), "learning_rate": 2e-3},
    "vicreg": {"expander": (64, 64), "learning_rate": 2e-3},
    "byol": {"projector": (64, 32), "predictor": (64,)},
    "autoencoder": {"decoder_width": 32, "decoder_depth": 1},
    "vae": {"decoder_width": 32, "decoder_depth": 1, "code": 16},
    "dino": {"projector": (64, 32), "prototypes": 32},
    "ibot": {"projector": (64, 32), "prototypes": 32},
    "latent": {"decoder_width": 32, "decoder_depth": 1},
    "simsiam": {"views": "light", "projector": (64, 64), "predictor": (32,), "learning_rate": 2e-3},
    "barlow": {"views": "light", "projector": (64, 64), "learning_rate": 2e-3},
    "moco": {"views": "light", "projector": (64, 32), "queue": 4, "teacher_momentum": 0.9, "learning_rate": 2e-3},
    "nnclr": {"views": "light", "projector": (64, 32), "predictor": (64,), "queue": 24, "learning_rate": 2e-3},
    "instance": {"views": "light", "projector": (32,), "temperature": 0.2, "learning_rate": 3e-3},
    "triplet": {"projector": (32,)},
    "lejepa": {"views": "light", "projector": (64, 16), "directions": 64, "local_crops": 1},
    "emp": {"views": "light", "crops": 3, "similarity": 20.0, "projector": (64, 32)},
    "swav": {"views": "light", "projector": (64, 32), "prototypes": 16, "queue": 24, "queue_start": 0.2},
    "deepcluster": {"views": "light", "projector": (64, 32), "clusterings": (8, 8)},
    "link": {"projector": (32, 32)},
    "masked": {"decoder_width": 64, "decoder_depth": 1},
    "cpc": {"horizon": 3, "negatives": 32},
    "wav2vec2": {"codes": 16, "code_width": 32, "learning_rate": 3e-3},
    "pretext": {"learning_rate": 5e-3},
}
#: What can be learnt in a few steps: whether two sentences are in order, not whether one follows another; that two
#: crops are of one wave if they are nearly as long, of one picture if they are crops and no more.
TASKS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("bytes", "pretext"): {"transformation": "order", "learning_rate": 1e-2},
    ("text", "pretext"): {"transformation": "order", "learning_rate": 3e-3},
    ("series", "simclr"): {"crop": 0.8},
    ("image", "simclr"): {"views": "light"},
}
#: Views small enough for a test.
VIEWS: Mapping[str, Mapping[str, Any]] = {
    "bytes": {"length": 24, "max_length": 48},
    "pair": {"image.size": 8, "image.patch": 4, "text.length": 12, "width": 32},
    "audio": {"mels": 8, "patch": 2, "crop": 0.16, "window": 0.32, "span": 40},
    "image": {"size": 16, "patch": 4},
    "graph": {"fanouts": (3, 2)},
    "series": {"patch": 4},
    "text": {"length": 16},
    "events": {"recent": 2},
    "video": {"size": 8, "patch": 4, "frames": 3, "tube": 1, "span": 6},
}
#: Steps that a cell gets; recognising a transformation, or one view among many, dawns late.
STEPS: Mapping[str, int] = {
    "autoencoder": 10,
    "vae": 10,
    "pretext": 32,
    "simclr": 20,
    "vicreg": 24,
    "moco": 24,
    "instance": 40,
    "deepcluster": 28,
}
#: The order of sentences takes a transformer whose blocks begin at zero long to see.
LONGER: Mapping[tuple[str, str, str], int] = {("text", "pretext", "transformer:pico"): 96}
USUAL_STEPS = 16
#: Steps after which the loss is first looked at: before, a memory holds nothing learnt, or labels are not there yet.
EMPTY: Mapping[str, int] = {"instance": 11, "deepcluster": 13}
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


def sounds(folder: Path) -> Path:
    """64 tones that slide up, of different pitch, loudness and length, in a little noise; 2,000 numbers a second."""
    generator = np.random.default_rng(0)
    time = np.arange(900) / 2000
    found = np.full((64, 900), np.nan, dtype=np.float32)
    for row in found:
        pitch, loud, length = generator.uniform(60, 500), generator.uniform(0.1, 0.8), int(generator.uniform(700, 900))
        tone = loud * np.sin(6.28 * pitch * (time + time**2)) + generator.normal(0, 0.01, 900)
        row[:length] = tone[:length]
    path = folder / "sounds.npz"
    np.savez(path, waves=found, rate=2000)
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


def films(folder: Path) -> Path:
    """64 films of a disc that crosses a scene of its own, at a speed of its own, while it gets dark from above."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    found = []
    for _ in range(64):
        row, start, speed, colour = *generator.uniform((3, 0, 0.5), (13, 6, 1.2)), generator.uniform(0.2, 1, 3)
        light = np.linspace(220, 40, 8)[:, None, None] - 6 * y
        disc = (y - row) ** 2 + (x - start - speed * np.arange(8)[:, None, None]) ** 2 < 9
        found.append(np.where(disc[..., None], 255 * colour, light[..., None]) + generator.normal(0, 4, (8, 16, 16, 3)))
    path = folder / "films.npy"
    np.save(path, np.array(found).clip(0, 255).astype(np.uint8))
    return path


def pairs(folder: Path) -> Path:
    """64 squares of a brightness and a place, with the words for them; of some rows only one side is there."""
    generator = np.random.default_rng(1)
    (folder / "pairs").mkdir()
    rows = ["picture,caption,tone"]
    for number in range(64):
        tone, place = ("dark", "grey", "light")[number % 3], ("left", "right")[number // 3 % 2]
        pixels = generator.normal(40, 10, (16, 16))
        pixels[4:12, slice(2, 8) if place == "left" else slice(8, 14)] += {"dark": 60, "grey": 120, "light": 180}[tone]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "pairs" / f"{number}.png")
        caption = "" if number % 16 == 5 else f"a {tone} square number {number} on the {place}"
        rows.append(f"{'' if number % 16 == 9 else f'{number}.png'},{caption},{tone}")
    path = folder / "pairs" / "captions.csv"
    path.write_text("\n".join(rows))
    return path


def events(folder: Path) -> Path:
    """192 payments among 16 people who each pay two others, their usual amounts, at their own pace."""
    generator = np.random.default_rng(0)
    rows = ["time,sender,receiver,amount"]
    clock = 0.0
    for _ in range(192):
        person = int(generator.integers(0, 16)) // int(generator.integers(1, 3))
        clock += generator.exponential(20)
        other, amount = (person * 3 + int(generator.integers(1, 3))) % 16, 10 * person + generator.normal(5, 1)
        rows.append(f"{clock:.3f},p{person},p{other},{amount:.3f}")
    path = folder / "payments.csv"
    path.write_text("\n".join(rows))
    return path


def rows(folder: Path) -> Path:
    """64 orders: what is bought says what it costs, who buys it and when; a few values are missing."""
    generator = np.random.default_rng(0)
    things = ("apple", "bread", "cheese", "wine", "lamp", "chair")
    lines = ["thing,price,weight,buyer,member,day"]
    for _ in range(64):
        thing = int(generator.integers(0, 6))
        price = "" if generator.random() < 0.1 else f"{2.0**thing + generator.normal(0, 0.2):.3f}"
        weight, day = 10 - 1.5 * thing + generator.normal(0, 0.3), 1 + 4 * thing + int(generator.integers(0, 4))
        buyer, member = ("anna", "ben", "carla")[thing // 2], "yes" if thing % 2 else "no"
        lines.append(f"{things[thing]},{price},{weight:.3f},{buyer},{member},2024-03-{day:02}")
    path = folder / "orders.csv"
    path.write_text("\n".join(lines))
    return path


def graphs(folder: Path) -> Path:
    """A graph of 64 people in six circles, whose features are those of their circle, with a few values missing."""
    generator = np.random.default_rng(0)
    circle = np.arange(64) % 6
    ends = [
        (a, b) for a in range(64) for b in range(a) if generator.random() < (0.4 if circle[a] == circle[b] else 0.02)
    ]
    features = generator.normal(0, 1, (6, 5))[circle] + generator.normal(0, 0.3, (64, 5))
    features[generator.integers(0, 64, 8), 0] = np.nan
    path = folder / "graph.npz"
    np.savez(path, edge_index=np.array(ends).T, x=features.astype(np.float32), label=circle)
    return path


def binaries(folder: Path) -> Path:
    """48 files of records: a mark, a counter and a payload that repeats it."""
    generator = np.random.default_rng(0)
    (folder / "binaries").mkdir()
    for number in range(48):
        mark, first, length = b"\x00\xff\x01" * (1 + number % 3), int(generator.integers(0, 200)), 12 + number % 7
        records = [mark + bytes([(first + n) % 256] * 4) for n in range(length)]
        (folder / "binaries" / f"{number}.bin").write_bytes(b"".join(records))
    return folder / "binaries"


SOURCES: Mapping[str, Callable[[Path], Path]] = {
    "bytes": binaries,
    "table": rows,
    "audio": sounds,
    "events": events,
    "pair": pairs,
    "graph": graphs,
    "image": pictures,
    "series": series,
    "text": texts,
    "video": films,
}

#: An encoder of every make besides the shared transformer.
OTHERS: Mapping[str, tuple[str, ...]] = {
    "events": ("tgn",),
    "table": ("mlp:tiny",),
    "pair": ("towers:timm:test_resnet+transformer:pico",),
    "audio": ("timm:test_resnet",),
    "graph": ("pyg:gcn-64x2",),
    "image": ("timm:test_resnet",),
    "series": ("dilated",),
    "text": ("hf:bert-tiny",),
    "video": ("timm:test_resnet",),
}

#: What these are tried with: an objective of every structure, of those on two views one. With the transformer, all are.
WITH_OTHERS = {"byol", "masked", "pretext", "ts2vec", "link", "dgi", "clip", "siglip"}

#: Kinds of data that differ in all that a loss sees of them: pixels, values with gaps, ids.
UNLIKE = ("image", "series", "text")

#: Networks that cannot do what a method needs: no tokens to hide in a convolution, no causal order in it or in BERT;
#: "video/…": on that kind of data, where they look at one picture at a time; "text/…": whose tokens are codes already.
CANNOT: Mapping[str, set[str]] = {
    "tgn": {"masked", "next", "cpc", "wav2vec2"},
    "timm:test_resnet": {"masked", "next", "cpc", "wav2vec2"},
    "hf:bert-tiny": {"next", "cpc"},
    "video/timm:test_resnet": {"pretext"},
    "audio/timm:test_resnet": {"ts2vec"},
    "text/transformer:pico": {"wav2vec2"},
    "text/hf:bert-tiny": {"wav2vec2"},
    "bytes/transformer:pico": {"wav2vec2"},
}


def make_sources(folder: Path) -> dict[str, Path]:
    return {kind: make(folder) for kind, make in SOURCES.items()}


def encoders(kind: str) -> tuple[str, ...]:
    return ("transformer:pico", *OTHERS.get(kind, ()))


def every_cell() -> list[tuple[str, str, str]]:
    """(modality, objective, encoder), all that Labelfree itself has (other tests register their own)."""
    return [
        (kind, method, encoder)
        for kind in own(registry.modalities())
        for method in own(registry.objectives())
        for encoder in encoders(kind)
        if encoder == "transformer:pico" or method in WITH_OTHERS
    ]


def telling_cells(kinds: Sequence[str] = UNLIKE) -> list[tuple[str, str, str]]:
    """Cells for what is slow to try: those of `WITH_OTHERS` all, each other objective with one of `kinds`, in turn."""
    cells = [cell for cell in every_cell() if fits(*cell)]
    found = [cell for cell in cells if cell[1] in WITH_OTHERS]
    for number, method in enumerate(sorted({method for _, method, _ in cells} - WITH_OTHERS)):
        first = number % len(kinds)
        order = [*kinds[first:], *kinds[:first], *SOURCES]
        found.append(min((cell for cell in cells if cell[1] == method), key=lambda cell: order.index(cell[0])))
    return found


def own(entries: Mapping[str, type]) -> list[str]:
    return [name for name, cls in entries.items() if cls.__module__.startswith("labelfree.")]


def cannot(kind: str, method: str, encoder: str) -> bool:
    return any(method in CANNOT.get(key, ()) for key in (encoder, f"{kind}/{encoder}"))


def fits(kind: str, method: str, encoder: str) -> bool:
    gaps = registry.missing(registry.objectives()[method], registry.modalities()[kind])
    return not gaps and not cannot(kind, method, encoder)


def steps_of(kind: str, method: str, encoder: str) -> int:
    return LONGER.get((kind, method, encoder), STEPS.get(method, USUAL_STEPS))


def assemble(source: Path, kind: str, method: str, encoder: str, **more: Any) -> Training:
    """This process's training of a cell, with `more` settings. Raises Refusal where the three do not fit."""
    cls, _ = registry.method(method)
    settings = {"batch_size": BATCH, "precision": "32", "threads": 1, "cache": "memory", "warmup": 1}
    tiny = {**SMALL.get(cls.name, {}), **VIEWS.get(kind, {}), **TASKS.get((kind, method), {})}
    plan, data, dataset, _ = make_plan(
        str(source),
        modality=kind,
        method=method,
        encoder=encoder,
        seed=0,
        seconds=None,
        settings=settings | tiny | more,
    )
    job = jobs.assemble(plan, data, dataset, steps_of(kind, method, encoder), world_size())
    return jobs.new_training(job, torch.device("cpu"), rank(), world_size())
