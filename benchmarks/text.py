"""20 Newsgroups and movie reviews: text without labels, ten minutes each, then few labels.

    python benchmarks/text.py DATA [--sets newsgroups,movie-reviews] [--time-limit 10m] [--out DIR] [key=value ...]
    python benchmarks/text.py DATA --sets movie-reviews --modality bytes --method next column=text

DATA holds a folder for each set, with train.parquet and test.parquet (columns text and label). Pretraining reads a copy
of the training texts that has no labels. The evaluation compares the encoder with the same network from scratch, with a
random one, and with TF-IDF (words and pairs of words) and logistic regression. Everything else is as Labelfree chooses
by itself, unless settings are given, those of the fine-tuning as `finetune.key=value`; `--modality bytes` reads the
texts as bytes. `--rows` keeps so many texts of each part, drawn by seed, where time is short. The result is printed as
JSON; `--out` keeps it, and a table, beside the runs.

DATA is laid down as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import labelfree
from labelfree.settings import parse_assignments


def measure(data: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain on the texts of one set and evaluate with its labels."""
    tuning = [a.removeprefix("finetune.") for a in options.settings if a.startswith("finetune.")]
    settings = [a for a in options.settings if not a.startswith("finetune.")]
    with tempfile.TemporaryDirectory() as folder:
        unlabelled = Path(folder) / "texts.parquet"
        parts = {name: some(data / f"{name}.parquet", Path(folder), options.rows) for name in ("train", "test")}
        pq.write_table(pq.read_table(parts["train"], columns=["text"]), unlabelled)
        run = labelfree.pretrain(
            str(unlabelled),
            modality=options.modality,
            method=options.method,
            encoder=options.encoder,
            out=out,
            time_limit=options.time_limit,
            **parse_assignments(settings),
        )
        found = run.evaluate(
            str(parts["train"]),
            str(parts["test"]),
            label="label",
            budgets=options.budgets.split(","),
            protocols=options.protocols.split(","),
            seeds=options.seeds,
            time_limit=options.evaluation_limit,
            **parse_assignments(tuning),
        )
    run.report()
    kept = ("method", "encoder", "steps", "samples", "seconds", "samples_per_second", "health", "hardware", "versions")
    return {key: run.info[key] for key in kept} | {"settings": run.info["settings"]} | found.to_dict()


def some(path: Path, folder: Path, rows: int) -> Path:
    """The table at `path`, or one with `rows` of its rows."""
    table = pq.read_table(path)
    if not rows or rows >= len(table):
        return path
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))[:rows]), folder / path.name)
    return folder / path.name


def table(name: str, found: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table: a row a method and protocol, a column a label budget."""
    rows = found["results"]
    budgets = list(dict.fromkeys(f"{row['budget']} ({row['labels']:,})" for row in rows))
    lines = [f"| {name}: {found['metric']} | {' | '.join(budgets)} |", "| --- |" + " --- |" * len(budgets)]
    for protocol, method in dict.fromkeys((row["protocol"], row["method"]) for row in rows):
        cells = {
            f"{row['budget']} ({row['labels']:,})": f"{row['score']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
            for row in rows
            if (row["protocol"], row["method"]) == (protocol, method)
        }
        words = "TF-IDF" if method == "raw" else method
        lines.append(f"| {words}, {protocol} | " + " | ".join(cells.get(budget, "–") for budget in budgets) + " |")
    return [*lines, "", found["verdict"], ""]


def commit() -> str:
    """The commit of the code that was measured."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", default="newsgroups,movie-reviews")
    parser.add_argument("--time-limit", default="10m")
    parser.add_argument("--evaluation-limit", default=None, help="time for the evaluation of each set")
    parser.add_argument("--modality", default=None, help="text or bytes")
    parser.add_argument("--rows", type=int, default=0, help="texts of each part that are kept; 0 for all")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--budgets", default="1%,10%,100%")
    parser.add_argument("--protocols", default="linear,finetune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    command = f"python benchmarks/text.py {' '.join(sys.argv[1:])}"
    results: dict[str, Any] = {"command": command, "commit": commit()}
    lines = [f"`{command}`, commit {results['commit']}", ""]
    for name in options.sets.split(","):
        results[name] = measure(options.data / name, options.out / name, options)
        lines += table(name, results[name])
    text = json.dumps(results, default=str, indent=2)
    (options.out / "results.json").write_text(text + "\n", encoding="utf-8")
    (options.out / "results.md").write_text("\n".join(lines), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
