"""MICLe: do several pictures of one case, as each other's positives, teach more than two views of one picture?

    python benchmarks/micle.py DATA/emoji --out DIR [--steps 300] [--seeds 3] [key=value ...]

Every emoji was drawn by two houses. Pretraining sees both drawings of four fifths of the emoji, without names and
categories: once with `micle`, where the two drawings of an emoji are positives of each other, once with `simclr`, where
two views of one drawing are. Then a probe learns categories from one house's drawings of these emoji and is asked for
those of the held-out emoji in the other house's drawing; and each held-out emoji looks for its other drawing among all
held-out ones, by the cosine of frozen features. Seeds are of the pretraining and of the untrained network; the
emoji that are held out stay. A finished cell is kept in DIR and not measured again with the same settings.

DATA is laid down as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import labelfree
from labelfree import runtime
from labelfree.evaluation.parts import fresh_encoder
from labelfree.settings import parse_assignments
from labelfree.tasks.embed import embed

HOUSES = ("images", "images-twitter")
METHODS = ("micle", "simclr")
Rows = list[dict[str, str]]


def split(data: Path) -> tuple[Rows, Rows]:
    """Rows of the emoji that both houses drew: four fifths, and the rest."""
    with (data / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if all((data / house / row["file"]).exists() for house in HOUSES)]
    held = set(np.random.default_rng(0).permutation(len(rows))[: len(rows) // 5].tolist())
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def folder(path: Path, data: Path, rows: Rows, houses: tuple[str, ...], columns: tuple[str, ...]) -> Path:
    """A folder of pictures with a metadata.csv that holds `columns`."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *columns])
        for house in houses:
            for row in rows:
                name = f"{house}-{row['file']}"
                if not (path / name).is_symlink():
                    os.symlink((data / house / row["file"]).resolve(), path / name)
                writer.writerow([name, *(row[column] for column in columns)])
    return path


def found_again(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the rows whose nearest one on the other side is their own."""
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    return float(((first @ second.T).argmax(axis=1) == np.arange(len(first))).mean())


def measure(sources: dict[str, Path], method: str, seed: int, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of a run with `method`, and of the same network untrained."""
    settings = parse_assignments(options.settings) | ({"case": "code"} if method == "micle" else {})
    run = labelfree.pretrain(
        sources["both"],
        modality="image",
        method=method,
        encoder=options.encoder,
        steps=options.steps,
        seed=seed,
        out=out,
        **settings,
    )
    found = run.evaluate(
        sources["train"], sources["test"], label="category", budgets=["100%"], protocols=["knn", "linear"]
    )
    scores = {f"{row.method}, {row.protocol}": row.score for row in found.results}
    held = [run.open(sources[name]) for name in ("test", "other")]
    for name, encoder in (("pretrained", run.encoder), ("random", fresh_encoder(run, seed))):
        scores[f"{name}, other drawing R@1"] = found_again(*(embed(encoder, run.modality, dataset) for dataset in held))
    return {"metric": found.metric, "seconds": run.info["seconds"], "settings": run.info["settings"], "scores": scores}


def table(cells: dict[str, Any]) -> str:
    """Markdown: a row of features, a column of questions; mean over seeds and its 95 % interval (Student's t)."""
    questions = ("linear", "knn", "other drawing R@1")
    lines = ["| features | " + " | ".join(questions) + " |", "| --- " * 4 + "|"]
    for method, name in [*((m, "pretrained") for m in METHODS), ("simclr", "random"), ("simclr", "raw")]:
        rows = [cell["scores"] for key, cell in cells.items() if key.startswith(method)]
        words = [
            mean([row[f"{name}, {question}"] for row in rows if f"{name}, {question}" in row]) for question in questions
        ]
        lines.append(f"| {method if name == 'pretrained' else name} | " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def mean(scores: list[float]) -> str:
    if not scores:
        return "–"
    if len(scores) == 1 or np.ptp(scores) == 0:
        return f"{scores[0]:.3f}"
    half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores)
    return f"{np.mean(scores):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default="timm:resnet10t")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    train, held = split(options.data)
    parts = {
        "both": (train, HOUSES, ("code",)),
        "train": (train, HOUSES[:1], ("category",)),
        "test": (held, HOUSES[1:], ("category",)),
        "other": (held, HOUSES[:1], ("category",)),
    }
    sources = {name: folder(options.out / name, options.data, *part) for name, part in parts.items()}
    path = options.out / "micle.json"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    known = {"hardware": runtime.hardware(), "versions": runtime.versions(), "commit": commit}
    known |= {"steps": options.steps, "encoder": options.encoder, "settings": options.settings}
    state = json.loads(path.read_text()) if path.exists() else {}
    if {key: state.get(key) for key in known} != known:
        state = known | {"cells": {}}
    for seed in range(options.seeds):
        for method in METHODS:
            key = f"{method}-{seed}"
            if key not in state["cells"]:
                shutil.rmtree(options.out / f"run-{key}", ignore_errors=True)  # of a script that was stopped
                state["cells"][key] = measure(sources, method, seed, options.out / f"run-{key}", options)
                path.write_text(json.dumps(state, indent=1, default=str) + "\n")
    print(table(state["cells"]))


if __name__ == "__main__":
    main()
