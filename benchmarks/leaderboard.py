"""Which method learns most in a minute? Every method on every kind of data that it fits, with equal time.

    python benchmarks/leaderboard.py data --out benchmarks/results [--time 60] [--jobs 2] [--tasks cifar10,adult]
    python benchmarks/leaderboard.py data --out benchmarks/results --table

Each cell pretrains for `--time` seconds on training samples without labels, with the defaults of the method and of the
kind of data, then asks for the labels with k-NN and a linear probe, beside the same network untrained and raw features.
All methods get one seed; then the best three of each task, by the linear probe, get two more. Series are twelve sets,
and texts take long to read: these two have half as much time again. A cell is a process of its own with one thread,
forked from one that has imported what all need, `--jobs` of them at a time, and is kept in `leaderboard.jsonl` when it
is done, so that an interrupted script goes on; one that failed is tried again. `--table` prints what is there as
Markdown.

The data, `cifar10`, `fashion-mnist`, `ucr`, `newsgroups`, `prompts`, `adult`, `cora`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

#: Of the UCR archive, small ones of different kinds.
UCR = ["ArrowHead", "BME", "CBF", "Chinatown", "Coffee", "BeetleFly"]
UCR += ["ECG200", "ECGFiveDays", "FaceFour", "Beef", "BirdChicken", "Car"]
#: Networks that a method needs where the usual one cannot do it.
TOKENS = "transformer:nano"
#: How recipes of papers' own networks and schedules are named.
LONG = ("-resnet", "-vit", "dinov2", "seer")
SEEDS = 3
#: How the processes of cells start, and what they all import.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch._dynamo", "timm", "labelfree.training.pretrain", "labelfree.evaluation.protocol"])


@dataclass(frozen=True)
class Part:
    """A source to pretrain on, and labelled ones to judge by."""

    source: Any
    train: Any
    test: Any
    label: str
    budget: str
    settings: dict[str, Any] = field(default_factory=dict)


def cifar10(data: Path, folder: Path, count: int = 5000) -> Iterable[Part]:
    """5,000 photographs, or `count` of them without labels; 2,000 others to judge by."""
    parts = []
    for name, rows in (("train", 5000), ("test", 2000)):
        parts.append(folder / f"{name}.parquet")
        pq.write_table(pq.read_table(data / f"cifar10/{name}.parquet").slice(0, rows), parts[-1])
    pq.write_table(pq.read_table(parts[0]).select(["image"]).slice(0, count), folder / "unlabelled.parquet")
    yield Part(folder / "unlabelled.parquet", *parts, "label", "10%")


def fashion(data: Path, folder: Path) -> Iterable[Part]:
    """5,000 pictures of clothes; 2,000 others to judge by."""
    for name, count in (("train", 5000), ("test", 2000)):
        with np.load(data / f"fashion-mnist/{name}.npz") as arrays:
            images, label = arrays["images"][:count], arrays["labels"][:count]
        np.savez(folder / f"{name}.npz", images=images, labels=label)
        np.save(folder / f"{name}.npy", images)
    yield Part(folder / "train.npy", folder / "train.npz", folder / "test.npz", "labels", "10%")


def ucr(data: Path, folder: Path) -> Iterable[Part]:
    """Twelve sets of series, which share the time."""
    for name in UCR:
        train, test = (data / "ucr" / name / f"{part}.npz" for part in ("train", "test"))
        with np.load(train) as arrays:
            np.save(folder / f"{name}.npy", arrays["X"])
        yield Part(folder / f"{name}.npy", train, test, "y", "100%")


def newsgroups(data: Path, folder: Path) -> Iterable[Part]:
    """11,314 articles of twenty groups; 1,000 of them and 1,000 others to judge by, since reading them takes long."""
    for name in ("train", "test"):
        texts = pq.read_table(data / f"newsgroups/{name}.parquet")
        few = np.random.default_rng(0).permutation(len(texts))[:1000]
        pq.write_table(texts.take(few), folder / f"{name}.parquet")
    whole = pq.read_table(data / "newsgroups/train.parquet", columns=["text"])
    pq.write_table(whole, folder / "texts.parquet")
    yield Part(folder / "texts.parquet", folder / "train.parquet", folder / "test.parquet", "label", "100%")


def prompts(data: Path, folder: Path) -> Iterable[Part]:
    """Spoken prompts in five languages; which one, of other prompts."""
    source = data / "prompts"
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = sorted({row["prompt"] for row in rows})
    held = set(np.random.default_rng(0).permutation(words)[: len(words) // 5].tolist())
    parts = []
    for name in ("train", "test"):
        kept = [row for row in rows if (row["prompt"] in held) == (name == "test")]
        parts.append(folder / name)
        for row in kept:
            path = parts[-1] / row["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            os.symlink((source / row["file"]).resolve(), path)
        with (parts[-1] / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(kept)
    yield Part(parts[0], *parts, "language", "10%")


def adult(data: Path, folder: Path) -> Iterable[Part]:
    """32,561 people of a census; who earns more than 50,000 dollars."""
    train, test = (data / "adult" / f"{part}.csv" for part in ("train", "test"))
    yield Part(train, train, test, "income", "1%", {"exclude": "income"})


def cora(data: Path, folder: Path) -> Iterable[Part]:
    """2,708 papers and who cites whom, without their words; their field."""
    source = data / "cora/graph.npz"
    yield Part(source, source, None, "y", "10%")


TASKS: dict[str, tuple[str, Callable[[Path, Path], Iterable[Part]]]] = {
    "cifar10": ("image", cifar10),
    "fashion-mnist": ("image", fashion),
    "ucr": ("series", ucr),
    "newsgroups": ("text", newsgroups),
    "prompts": ("audio", prompts),
    "adult": ("table", adult),
    "cora": ("graph", cora),
    "cifar10-300": ("image", partial(cifar10, count=300)),
    "cifar10-1000": ("image", partial(cifar10, count=1000)),
}


#: Beside the leaderboard: fewer photographs, as `auto` asks for them.
FEWER = ("cifar10-300", "cifar10-1000")
#: Tasks with more than their share of time.
TIMES = {"ucr": 1.5, "newsgroups": 1.5}


def methods(kind: str) -> list[str]:
    """Objectives and recipes that fit a kind of data.

    Recipes for long trainings of large networks are left out: their objectives stand there already. So is `micle`: no
    task has cases.
    """
    from labelfree import registry

    modality = registry.modalities()[kind]
    found = [name for name, cls in registry.objectives().items() if not registry.missing(cls, modality)]
    fits = {name: recipe for name, (cls, recipe) in registry.recipes().items() if cls.name in found}
    more = [name for name, recipe in fits.items() if not recipe.modalities or kind in recipe.modalities]
    return found + [name for name in more if not name.endswith(LONG) and name != "micle"]


def one(data: Path, task: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Pretrain and judge: mean scores over the parts of a task.

    What the same network untrained and raw features reach is the same for many methods, and measured once.
    """
    import labelfree
    from labelfree import registry
    from labelfree.errors import Refusal

    kind, parts_of = TASKS[task]
    scores: dict[str, list[float]] = {}
    _, recipe = registry.method(method)
    of_tokens = recipe is not None and str(recipe.encoder).startswith("transformer:")
    steps, spent, encoder = 0, 0.0, TOKENS if of_tokens else "auto"  # papers' own sizes would take a dozen steps
    with tempfile.TemporaryDirectory() as name:
        parts = list(parts_of(data, Path(name)))
        limit = TIMES.get(task, 1) * seconds / len(parts)
        for number, part in enumerate(parts):
            asked: dict[str, Any] = {"modality": kind, "method": method, "seed": seed, "time_limit": limit}
            asked |= {"threads": 1, "out": Path(name, f"run{number}"), **part.settings}
            try:
                run = labelfree.pretrain(part.source, encoder=encoder, **asked)
            except Refusal:
                encoder = TOKENS  # the usual network cannot do what the method needs
                run = labelfree.pretrain(part.source, encoder=encoder, **asked)
            if not number:
                plan = run.info["plan"]
                network = network_of(plan)
                known = measured_beside(out, task, network)
            found = run.evaluate(
                part.train,
                part.test,
                label=part.label,
                budgets=[part.budget],
                protocols=["knn", "linear"],
                baselines="none" if known else ("random", "raw"),
                metric="accuracy",
            )
            for row in found.results:
                scores.setdefault(f"{row.method}/{row.protocol}", []).append(row.score)
            steps, spent = steps + run.info["steps"], spent + run.info["seconds"]
    mean = {key: round(float(np.mean(values)), 4) for key, values in scores.items()}
    return {"steps": steps, "seconds": round(spent, 1), "encoder": plan["encoder"], "network": network, **mean, **known}


def network_of(plan: dict[str, Any]) -> str:
    """A short name of what the untrained network of a run depends on beside its task."""
    parts = [plan["encoder"], plan["causal"], plan["modality_settings"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def measured_beside(out: Path, task: str, network: str) -> dict[str, Any]:
    """What a row that is there says of the same network untrained and of raw features; empty where there is none."""
    rows = [row for row in kept(out / "leaderboard.jsonl").values() if row["task"] == task]
    same = next((row for row in rows if row.get("network") == network and "error" not in row), {})
    return {key: value for key, value in same.items() if key.startswith(("random/", "raw/"))}


def answer(sender: Connection, options: argparse.Namespace, cell: tuple[str, str, int]) -> None:
    """Send what a cell comes to, or why it failed."""
    task, method, seed = cell
    with Path(os.devnull).open("w", encoding="utf-8") as sys.stderr:
        try:
            found = one(Path(options.data), task, method, seed, options.time, options.out)
        except Exception as error:  # the other cells go on
            found = {"error": str(error) or type(error).__name__}
    sender.send(found)


def measure(options: argparse.Namespace, done: dict[tuple[str, str, int], Any], cell: tuple[str, str, int]) -> None:
    """Run a cell in a process of its own, and keep what comes out, also that it failed."""
    if cell in done and "error" not in done[cell] and not options.again:
        return
    began = time.time()
    receiver, sender = FORKED.Pipe(duplex=False)
    child = FORKED.Process(target=answer, args=(sender, options, cell))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        child.join()
        found = {"error": f"ended with {child.exitcode}"}
    child.join()
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    seconds = TIMES.get(cell[0], 1) * options.time
    line = {"task": cell[0], "method": cell[1], "seed": cell[2], "time": seconds, "jobs": options.jobs}
    done[cell] = line | {"commit": commit, "wall": round(time.time() - began)} | found
    with (options.out / "leaderboard.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(done[cell]) + "\n")
    print(cell, found, flush=True)


def kept(path: Path) -> dict[tuple[str, str, int], Any]:
    """What was measured already, the last time that it was."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["task"], row["method"], row["seed"]): row for row in rows}


def best(done: dict[tuple[str, str, int], Any], task: str, count: int) -> list[str]:
    scores = {
        m: row["pretrained/linear"] for (t, m, s), row in done.items() if (t, s) == (task, 0) and "error" not in row
    }
    return sorted(scores, key=lambda method: -scores[method])[:count]


def table(done: dict[tuple[str, str, int], Any]) -> str:
    """Markdown: for each task the methods from best to worst, with the baselines; and the time that all took."""
    lines = []
    for task in dict.fromkeys(task for task, _, _ in done):
        columns = ("method", "encoder", "steps", "linear", "k-NN", "untrained, linear", "untrained, k-NN", "raw")
        lines += [f"### {task}", "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        every: dict[str, list[Any]] = {}
        for (t, method, _), row in done.items():
            if t == task and "error" not in row:
                every.setdefault(method, []).append(row)
        for method, rows in sorted(every.items(), key=lambda item: -np.mean([r["pretrained/linear"] for r in item[1]])):
            linear, knn = ([row[f"pretrained/{p}"] for row in rows] for p in ("linear", "knn"))
            spread = f" ± {np.std(linear, ddof=1):.3f} ({len(rows)} seeds)" if len(rows) > 1 else ""
            first = rows[0]
            cells = [method, first["encoder"], f"{first['steps']:,}", f"{np.mean(linear):.3f}{spread}"]
            cells += [
                f"{np.mean(knn):.3f}",
                *(f"{first[key]:.3f}" for key in ("random/linear", "random/knn", "raw/linear")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        failed = {m: row["error"] for (t, m, _), row in done.items() if t == task and "error" in row}
        lines += ["", *(f"`{method}`: {words}" for method, words in failed.items()), ""]
    hours = sum(row["wall"] / row["jobs"] for row in done.values()) / 3600
    lines.append(f"All {len(done)} cells took {hours:.1f} hours.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--time", type=float, default=60.0, help="seconds of each method without labels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time, of one thread each")
    parser.add_argument("--tasks", default=",".join(task for task in TASKS if task not in FEWER))
    parser.add_argument("--methods", help="these, by commas, three seeds each; all that fit if left out")
    parser.add_argument("--again", action="store_true", help="measure what is there once more, with one seed")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    done = kept(options.out / "leaderboard.jsonl")
    if options.table:
        print(table(done))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}  # before the first process starts
    with ThreadPoolExecutor(options.jobs) as pool:
        for task in options.tasks.split(","):
            asked = options.methods.split(",") if options.methods else methods(TASKS[task][0])
            list(pool.map(partial(measure, options, done), [(task, method, 0) for method in asked]))
            if not options.again:
                repeated = asked if options.methods else best(done, task, 3)
                more = [(task, method, seed) for method in repeated for seed in range(1, SEEDS)]
                list(pool.map(partial(measure, options, done), more))


if __name__ == "__main__":
    main()
