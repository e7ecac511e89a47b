"""Tables: census rows and card payments with few labels and none; memory and time of corruption on a million rows.

    OMP_NUM_THREADS=1 python benchmarks/table.py data [--parts adult,creditcard,large] [--out benchmarks/results]

Pretraining never sees the labels (columns income and Class are left out). Adult has its own test part. Of the payments
the first four fifths in time are learnt from, the last fifth is tested on. Anomaly scores use no label at all: distance
from the mean of the features, beside the same distance of raw features and of a random encoder, and an isolation
forest. `large` makes a million rows of fifty columns, as Parquet, and takes SCARF steps on it in a process of its own.

The data, `adult`, `creditcard`, lie as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
CHILD = "--large-child"


def with_labels(
    run: Any, train: Any, test: Any, label: str, options: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """Evaluate a run at label budgets."""
    found = run.evaluate(
        train,
        test,
        label=label,
        budgets=options.budgets.split(","),
        protocols=options.protocols.split(","),
        seeds=options.seeds,
        time_limit=options.evaluation_limit,
        **more,
    )
    kept = ("method", "encoder", "steps", "seconds", "samples_per_second", "health")
    return {key: run.info[key] for key in kept} | found.to_dict()


def adult(data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import labelfree

    results = {}
    for method in options.methods.split(","):
        run = labelfree.pretrain(
            data / "adult/train.csv",
            method=method,
            exclude="income",
            steps=options.steps,
            out=folder / f"adult-{method}",
            threads=THREADS,
        )
        test = data / "adult/test.csv"
        results[method] = with_labels(run, data / "adult/train.csv", test, "income", options, metric="accuracy")
    return results


def creditcard(data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import labelfree

    table = pq.read_table(data / "creditcard/data.parquet")
    cut = len(table) * 4 // 5
    train, test = folder / "payments-train.parquet", folder / "payments-test.parquet"
    pq.write_table(table.slice(0, cut), train)
    pq.write_table(table.slice(cut), test)
    results: dict[str, Any] = {}
    for method in options.methods.split(","):
        run = labelfree.pretrain(
            train,
            modality="table",
            method=method,
            exclude="Class,Time",
            steps=options.steps,
            out=folder / f"payments-{method}",
            threads=THREADS,
        )
        found = with_labels(run, train, test, "Class", options, metric="average_precision")
        results[method] = found | {"anomalies": strange(run, train, test)}
    return results


def strange(run: Any, train: Path, test: Path) -> dict[str, Any]:
    """Average precision and ROC-AUC, with intervals over test samples, of scores that know no label."""
    import torch
    from sklearn.ensemble import IsolationForest

    from labelfree.evaluation.parts import fresh_encoder
    from labelfree.evaluation.statistics import TestPart
    from labelfree.tasks.anomalies import Ordinary
    from labelfree.tasks.embed import embed

    learnt, asked = run.open(train), run.open(test)
    rows = np.unique(np.linspace(0, len(learnt) - 1, 50_000).astype(int))
    judge = TestPart(asked.column("Class").astype(int))

    def scored(answers: np.ndarray) -> dict[str, Any]:
        found = {metric: judge.interval(metric, answers[None]) for metric in ("average_precision", "roc_auc")}
        return {metric: [round(x, 4) for x in (f.mean, f.low, f.high)] for metric, f in found.items()}

    def by_distance(features: Callable[[Any, Any], np.ndarray]) -> dict[str, Any]:
        return scored(Ordinary.learn(features(learnt, rows)).score(features(asked, np.arange(len(asked)))))

    def normalised(dataset: Any, places: np.ndarray) -> np.ndarray:
        return run.modality.fields.normalise(torch.from_numpy(dataset.values[places])).numpy()

    def by(encoder: Any) -> Callable[[Any, Any], np.ndarray]:
        return lambda dataset, places: embed(encoder, run.modality, dataset, indices=places)

    forest = IsolationForest(random_state=0).fit(learnt.values[rows])
    return {
        "pretrained": by_distance(by(run.encoder)),
        "random encoder": by_distance(by(fresh_encoder(run, 0))),
        "raw, normalised": by_distance(normalised),
        "isolation forest": scored(-forest.score_samples(asked.values)),
    }


def large(data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, so that its peak of memory is its own."""
    rng = np.random.default_rng(0)
    source = folder / "large.parquet"
    with pq.ParquetWriter(
        source, pa.schema([(f"x{i}", pa.float32()) for i in range(40)] + [(f"c{i}", pa.string()) for i in range(10)])
    ) as writer:
        for _ in range(10):
            numbers = {f"x{i}": rng.normal(size=100_000).astype(np.float32) for i in range(40)}
            words = {f"c{i}": [f"v{v}" for v in rng.integers(0, 20, 100_000)] for i in range(10)}
            writer.write_table(pa.table(numbers | words))
    out = subprocess.run([sys.executable, __file__, str(source), CHILD], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def large_child(source: Path, steps: int = 40) -> dict[str, Any]:
    """Open, learn statistics, take SCARF steps; how much of a step is spent before the network."""
    import torch

    from labelfree.data.cache import Cached
    from labelfree.data.draw import Draw
    from labelfree.data.loader import Loader
    from labelfree.data.sampler import Order
    from labelfree.encoders.mlp import MLP
    from labelfree.modalities.table import Table, TableSettings
    from labelfree.objectives.simclr import SimCLR, SimCLRSettings

    torch.set_num_threads(THREADS)
    began = time.perf_counter()
    modality = Table(TableSettings(corrupt=0.6))
    dataset = modality.open(source)
    opened = time.perf_counter() - began
    modality.fit(dataset)
    near = Cached(dataset, modality)
    ready = time.perf_counter() - began
    settings = SimCLRSettings(views="one", temperature=1.0, projector=(256, 256))
    objective = SimCLR(MLP.build("base", modality), modality, settings)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, fused=True)
    loader = Loader(near, modality, Order(len(near), 512, 0), torch.device("cpu"))
    views, whole = [], []
    clock = time.process_time
    start = clock()
    for step, batch in enumerate(loader.steps(0, steps)):
        loaded, draw = clock(), Draw.start(0, 0, step, batch.index)
        modality.view(batch, draw), modality.view(batch, draw.view(1), "none")  # made once more, to be timed alone
        made = clock()
        objective.loss(batch, draw).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        views.append(loaded - start + made - loaded)
        whole.append(clock() - made + loaded - start)
        start = clock()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    share = float(np.median(views) / np.median(whole))
    return {
        "rows": len(dataset),
        "columns": len(dataset.fields.columns),
        "seconds to open": round(opened, 1),
        "seconds until the first step": round(ready, 1),
        "peak memory, GiB": round(peak, 2),
        "CPU ms a step of 512": round(1e3 * float(np.median(whole)), 1),
        "share of a step outside the network": round(share, 4),
    }


PARTS: dict[str, Callable[[Path, Path, argparse.Namespace], dict[str, Any]]] = {
    "adult": adult,
    "creditcard": creditcard,
    "large": large,
}


def main() -> None:
    if CHILD in sys.argv:
        print(json.dumps(large_child(Path(sys.argv[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", default="adult,creditcard,large")
    parser.add_argument("--methods", default="scarf,vime")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--budgets", default="1%,10%,100%")
    parser.add_argument("--protocols", default="linear,finetune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluation-limit", default=None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    from labelfree import runtime

    options.out.mkdir(parents=True, exist_ok=True)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    about = {"command": " ".join(sys.argv), "commit": commit, "threads": THREADS}
    about |= {"hardware": runtime.hardware(), "versions": runtime.versions()}
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = about | {"results": PARTS[part](options.data, Path(folder), options)}
        text = json.dumps(found, indent=1, default=str)
        (options.out / f"table-{part}.json").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    main()
