"""What the loop, the loader and the logs cost over the bare forward, backward and step.

    python benchmarks/overhead.py [--rounds 5] [--threads 2]

Both sides train the same network with the same objective on the same pictures, held in memory. The bare side has its
batches ready and does nothing but forward, backward, step. The two take turns, and the median of the ratios is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.draw import Draw
from labelfree.training import job as jobs
from labelfree.training import loop
from labelfree.training.logs import Meter, MetricsFile
from labelfree.training.plan import make_plan

STEPS = 3


def assemble(encoder: str, batch_size: int) -> loop.Training:
    """A training on random pictures, as `pretrain` puts it together."""
    pictures = np.random.default_rng(0).integers(0, 255, (4 * batch_size, 32, 32, 3), dtype=np.uint8)
    settings = {"batch_size": batch_size, "log_every": 1, "checkpoint_every": 10**6, "cache": "memory"}
    plan, data, dataset, _ = make_plan(
        pictures, modality="image", method="simclr", encoder=encoder, seed=0, seconds=None, settings=settings
    )
    return jobs.new_training(jobs.assemble(plan, data, dataset, steps=10**6), torch.device("cpu"))


def bare(training: loop.Training) -> float:
    """Seconds for the steps with nothing around them."""
    batches = list(training.loader.steps(0, STEPS))
    start = time.perf_counter()
    for step, batch in enumerate(batches):
        loss, _, _ = training.module(batch, Draw.start(0, 0, step, batch.index))
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def ours(training: loop.Training, folder: Path) -> float:
    """Seconds for the same steps by the engine's loop: loader, schedule, guards, health, log lines, progress."""
    metrics, meter = MetricsFile(folder / "metrics.jsonl"), Meter(STEPS, 0, training.settings.batch_size)

    def log(step: int, line: dict[str, float]) -> None:
        metrics.write({"step": step, **line})
        meter.line(line)

    tell = loop.Callbacks(log=log, save=lambda step: None, tick=meter.step, warn=lambda words: None)
    training.steps = STEPS
    start = time.perf_counter()
    loop.train(training, 0, loop.StopRequest(), tell)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=runtime.cores())
    parser.add_argument("--encoder", default="timm:resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    runtime.prepare_machine(options.threads)
    training = assemble(options.encoder, options.batch_size)
    bare(training)
    ratios, pairs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            order = [lambda: bare(training), lambda: ours(training, Path(folder))]
            times = [run() for run in (order if number % 2 else order[::-1])]
            a, b = times if number % 2 else times[::-1]
            pairs.append((round(a / STEPS, 4), round(b / STEPS, 4)))
            ratios.append(b / a)
    result = {
        "bare_and_ours_seconds_per_step": pairs,
        "overhead": round(statistics.median(ratios) - 1, 4),
        "settings": vars(options),
        **runtime.hardware(),
        **runtime.versions(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
