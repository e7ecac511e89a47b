"""CIFAR-10 for a CPU: 10,000 pictures without labels, ten minutes, then a linear probe with few labels.

    python benchmarks/cifar10.py DATA [--time-limit 10m] [--out runs/cifar10] [key=value ...]

DATA is a folder with train.parquet and test.parquet (columns image and label, as Hugging Face lays them down). The
first 10,000 pictures of the training part are used, for pretraining and, with few of their labels, for the probe; the
whole test part is scored on. Everything else is what Labelfree chooses by itself, unless settings are given. Trials by
which settings are chosen leave the test part alone: `--held-out 2000` scores on as many further training pictures.

DATA is laid down as benchmarks/README.md says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

import labelfree
from labelfree.settings import parse_assignments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--time-limit", default="10m")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--held-out", type=int, default=0, help="score on so many further training pictures")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--budgets", default="1%,10%")
    parser.add_argument("--protocols", default="knn,linear,finetune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.parquet", options.data / "test.parquet"
        whole = pq.read_table(options.data / "train.parquet")
        table = whole.slice(0, options.count)
        if options.held_out:
            test = Path(folder) / "held-out.parquet"
            pq.write_table(whole.slice(40_000, options.held_out), test, row_group_size=1000)
        pq.write_table(table, train, row_group_size=1000)
        # labels stay behind: pretraining reads a file that has none
        unlabelled = Path(folder) / "unlabelled.parquet"
        pq.write_table(table.select(["image"]), unlabelled, row_group_size=1000)
        run = labelfree.pretrain(
            str(unlabelled),
            method=options.method,
            encoder=options.encoder,
            out=options.out,
            time_limit=options.time_limit,
            **parse_assignments(options.settings),
        )
        found = run.evaluate(
            str(train),
            str(test),
            label="label",
            budgets=options.budgets.split(","),
            protocols=options.protocols.split(","),
            seeds=options.seeds,
        )
    run.report()
    kept = ("method", "encoder", "steps", "samples", "seconds", "samples_per_second", "health", "hardware", "versions")
    print(json.dumps({key: run.info[key] for key in kept} | found.to_dict(), default=str, indent=2))


if __name__ == "__main__":
    main()
