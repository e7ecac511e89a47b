"""Occupancy of a room: is another regime noticed, and is it told from 1 % of the labels whether someone is there?

    python benchmarks/occupancy.py --data data/occupancy/data.csv --out benchmarks/results

TS2Vec learns from the week of 4 February 2015, while the door was mostly shut, without labels, in windows of
32 minutes.

`regime`: are windows of 11–18 February, when the door stood open while someone was in, stranger (further from the usual
features, in deviations) than those of 2–4 February, when it was shut? It was another week, too: the figure says that
the regime is noticed, not why. `switch`: how far are the features of neighbouring windows apart where the room fills or
empties, and where it does not? Beside both: the same measures on raw features and on the untrained network.
`classes`: `labelfree evaluate` with the labels of the week, scored on 11–18 February, beside raw features, the
untrained network and the network from scratch.

The data, `occupancy`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import labelfree
from labelfree import runtime
from labelfree.evaluation.parts import fresh_encoder
from labelfree.run import Run
from labelfree.tasks.anomalies import Ordinary
from labelfree.tasks.embed import embed

#: First and last moment of each part, as the data were published (Candanedo & Feldheim 2016).
PARTS = {
    "shut": ("2015-02-02 14:19", "2015-02-04 10:44"),
    "week": ("2015-02-04 17:51", "2015-02-10 09:34"),
    "open": ("2015-02-11 14:47", "2015-02-18 09:20"),
}
SEEDS = 3


def parts(source: Path, folder: Path) -> dict[str, Path]:
    """One CSV a part."""
    frame = pd.read_csv(source)
    found = {}
    for name, (first, last) in PARTS.items():
        found[name] = folder / f"{name}.csv"
        frame[frame.datetime.between(first, last)].to_csv(found[name], index=False)
    return found


def measured(features: dict[str, np.ndarray], switch: np.ndarray) -> dict[str, float]:
    """Areas under the ROC curve of both questions."""
    usual = Ordinary.learn(features["week"])
    strange = {name: usual.score(features[name]) for name in ("shut", "open")}
    truth = np.repeat([0, 1], [len(strange["shut"]), len(strange["open"])])
    scaled = features["open"] - features["week"].mean(axis=0)
    scaled /= features["week"].std(axis=0) + 1e-6
    apart = np.linalg.norm(np.diff(scaled, axis=0), axis=1)
    return {
        "regime": float(roc_auc_score(truth, np.concatenate([strange["shut"], strange["open"]]))),
        "switch": float(roc_auc_score(switch, apart)),
    }


def pretrained(file: Path, folder: Path, seed: int, threads: int) -> Run:
    return labelfree.pretrain(
        file,
        method="ts2vec",
        encoder="dilated",
        steps=200,
        window=32,
        exclude="occupancy",
        seed=seed,
        threads=threads,
        out=folder,
    )


def without_labels(source: Path, seed: int, threads: int) -> dict[str, Any]:
    """Both questions that no label helps with."""
    with tempfile.TemporaryDirectory() as name:
        files = parts(source, Path(name))
        run = pretrained(files["week"], Path(name, "run"), seed, threads)
        sets = {part: run.open(file) for part, file in files.items()}
        switch = np.diff(sets["open"].column("occupancy").astype(int)) != 0
        raw = run.modality.raw_features(sets["week"], [sets["shut"], sets["open"]])
        of = {
            "pretrained": {part: run.embed(file) for part, file in files.items()},
            "untrained": untrained(run, sets, seed),
            "raw": dict(zip(("week", "shut", "open"), raw, strict=True)),
        }
        return {method: measured(features, switch) for method, features in of.items()}


def classes(source: Path, threads: int, limit: str | None) -> dict[str, Any]:
    """Three seeds of labels and initial weights on one pretraining."""
    with tempfile.TemporaryDirectory() as name:
        files = parts(source, Path(name))
        run = pretrained(files["week"], Path(name, "run"), 0, threads)
        budgets = ["1%", "10%", "100%"]
        return run.evaluate(
            files["week"], files["open"], label="occupancy", budgets=budgets, time_limit=limit
        ).to_dict()


def untrained(run: Run, sets: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    encoder = fresh_encoder(run, seed)
    return {part: embed(encoder, run.modality, dataset) for part, dataset in sets.items()}


def table(results: dict[str, Any]) -> str:
    """Markdown: mean over seeds and the 95 % interval of the mean (Student's t)."""
    from scipy import stats

    lines = ["| question | features | ROC-AUC |", "| --- | --- | --- |"]
    for question in ("regime", "switch"):
        for method in ("pretrained", "untrained", "raw"):
            scores = np.array([found[method][question] for key, found in results.items() if key != "classes"])
            half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores) if len(scores) > 1 else float("nan")
            lines.append(f"| {question} | {method} | {scores.mean():.3f} ± {half:.3f} |")
    found = results.get("classes")
    if found is not None:
        lines += [
            "",
            f"| protocol | labels | method | {found['metric']} | 95 % interval |",
            "| --- | --- | --- | --- | --- |",
        ]
        for r in found["results"]:
            numbers = f"{r['score']:.3f} | {r['low']:.3f} … {r['high']:.3f}"
            lines.append(f"| {r['protocol']} | {r['budget']} ({r['labels']}) | {r['method']} | {numbers} |")
        lines += ["", found["verdict"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", help="time for the evaluation: 10m; none by default")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "occupancy.json"
    state = json.loads(path.read_text()) if path.exists() else {"results": {}}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    state |= {"hardware": runtime.hardware(), "versions": runtime.versions(), "commit": commit}
    jobs = [(str(seed), without_labels, (options.data, seed, options.threads)) for seed in range(SEEDS)]
    jobs.append(("classes", classes, (options.data, options.threads, options.limit)))
    for key, work, arguments in jobs:
        if key not in state["results"]:
            state["results"][key] = work(*arguments)  # type: ignore[operator]
            path.write_text(json.dumps(state, indent=1, default=str) + "\n")
            (options.out / "occupancy.md").write_text(table(state["results"]))
    print(table(state["results"]))


if __name__ == "__main__":
    main()
