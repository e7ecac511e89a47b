"""Emoji: pictures and their names tied by row; then retrieval, zero-shot classes, and the same emoji drawn otherwise.

    python benchmarks/pair.py DATA/emoji [--steps 200] [--method clip] [--encoder SPEC] [--out DIR] [key=value ...]

A fifth of the emoji, drawn by seed, is held out. Pretraining sees Google's pictures and the names of the others, and no
category. Measured on the held-out ones: R@1/5/10 from picture to name and back; the category, from its words
alone; and the same emoji among Twitter's drawings, which pretraining never saw, by the picture tower. Beside them stand
chance, the same towers untrained, and pixels: a picture's name is then guessed as that of the nearest training picture
(TF-IDF of its words ranks the names), its category as that of the nearest training picture, which needs labels.

DATA is laid down as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer

import labelfree
from labelfree import runtime
from labelfree.evaluation.parts import fresh_encoder
from labelfree.settings import parse_assignments
from labelfree.tasks.sides import Proportion, hits, ranks, sides_of

AT = (1, 5, 10)
Rows = list[dict[str, str]]


def split(data: Path, seed: int) -> tuple[Rows, Rows]:
    """Rows for training, and the fifth that is held out."""
    with (data / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    held = set(np.random.default_rng(seed).permutation(len(rows))[: len(rows) // 5].tolist())
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def write(path: Path, rows: Rows, pictures: Path, columns: tuple[str, ...]) -> Path:
    """A table of paths and some columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", *columns])
        writer.writerows([str((pictures / row["file"]).resolve()), *(row[name] for name in columns)] for row in rows)
    return path


def pixels(rows: Rows, pictures: Path, side: int = 32) -> np.ndarray:
    """(N, side² · 3) unit vectors of centred pixels, on white."""
    found = []
    for row in rows:
        image = Image.open(pictures / row["file"]).convert("RGBA")
        white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        found.append(np.asarray(white.resize((side, side)), dtype=np.float32).ravel())
    x = np.stack(found)
    x -= x.mean(axis=1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def recall(q: np.ndarray, k: np.ndarray) -> list[Proportion]:
    """R@K of each query's own row."""
    better, ties, _ = ranks(q, k)
    return [Proportion.of(hits(better, ties, at)) for at in AT]


def of_towers(run: Any, name: str, held: Path, drawn_anew: Path) -> dict[str, list[Proportion]]:
    """Recalls of a run's encoder; `name` for the rows of the table."""
    sides, twitter = sides_of(run, run.open(held)), sides_of(run, run.open(drawn_anew))
    return {
        f"picture → name, {name}": recall(sides["image"], sides["text"]),
        f"name → picture, {name}": recall(sides["text"], sides["image"]),
        f"same emoji, other drawing, {name}": recall(sides["image"], twitter["image"]),
    }


def of_pixels(data: Path, train: Rows, held: Rows) -> tuple[dict[str, list[Proportion]], Proportion]:
    """Recalls, and the share of categories named rightly, by the nearest training picture."""
    x, own, twitter = (
        pixels(train, data / "images"),
        pixels(held, data / "images"),
        pixels(held, data / "images-twitter"),
    )
    near = (own @ x.T).argmax(axis=1)
    words = TfidfVectorizer().fit([row["name"] for row in train + held])
    guessed = words.transform([train[place]["name"] for place in near]).toarray()
    names = words.transform([row["name"] for row in held]).toarray()
    found = {
        "picture → name, pixels": recall(guessed, names),
        "name → picture, pixels": recall(names, guessed),
        "same emoji, other drawing, pixels": recall(own, twitter),
    }
    right = np.array([train[place]["category"] == row["category"] for place, row in zip(near, held, strict=True)])
    return found, Proportion.of(right)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, and everything that is measured."""
    options.out.mkdir(parents=True, exist_ok=True)
    data: Path = options.data
    train, held = split(data, options.seed)
    source = write(options.out / "train.csv", train, data / "images", ("name",))
    test = write(options.out / "held.csv", held, data / "images", ("name", "category"))
    drawn_anew = write(options.out / "twitter.csv", held, data / "images-twitter", ("name",))
    run = labelfree.pretrain(
        source,
        modality="pair",
        method=options.method,
        encoder=options.encoder,
        steps=options.steps,
        seed=options.seed,
        out=options.out / "run",
        **parse_assignments(options.settings),
    )
    found = of_towers(run, options.method, test, drawn_anew)
    zero = run.zero_shot(test, "category", prompts=options.prompt)
    untrained = labelfree.load(run.path)
    untrained._loaded = (run.modality, fresh_encoder(run, options.seed))
    found |= of_towers(untrained, "untrained", test, drawn_anew)
    of_nearest, category = of_pixels(data, train, held)
    kept = ("steps", "samples", "seconds", "samples_per_second", "encoder", "settings", "hardware", "versions")
    return {
        "recall": found | of_nearest,
        "category": {f"words alone, {options.method}": zero.accuracy, "nearest picture with labels, pixels": category},
        "category_balanced": zero.balanced_accuracy,
        "category_majority": zero.majority,
        "held": len(held),
        **{key: run.info[key] for key in kept},
    }


def table(found: dict[str, Any]) -> list[str]:
    """Lines of Markdown tables."""

    def cell(share: Proportion) -> str:
        return f"{share.value:.3f} ({share.low:.3f}–{share.high:.3f})"

    lines = [f"| {found['held']} held-out emoji | R@1 | R@5 | R@10 |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {' | '.join(map(cell, shares))} |" for name, shares in sorted(found["recall"].items())]
    chance = " | ".join(f"{at / found['held']:.3f}" for at in AT)
    lines += [f"| chance | {chance} |", ""]
    lines += ["| category of 10 | accuracy |", "| --- | --- |"]
    lines += [f"| {name} | {cell(share)} |" for name, share in found["category"].items()]
    return [*lines, f"| commonest class | {found['category_majority']:.3f} |", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", default="clip")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", action="append", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    options.prompt = options.prompt or ["{}"]
    runtime.prepare_machine()
    found = measure(options)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    command = f"python benchmarks/pair.py {' '.join(sys.argv[1:])}"
    lines = [f"`{command}`, commit {commit}", "", *table(found)]
    (options.out / "results.md").write_text("\n".join(lines), encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(found | {"command": command, "commit": commit}, default=vars))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
