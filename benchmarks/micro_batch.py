"""4,096 pictures in the memory of 256: one SimCLR step with `micro_batch`, beside a batch of 256 and the whole batch.

    python benchmarks/micro_batch.py [--encoder timm:resnet18] [--threads 2] [--whole]

Each side runs in a process of its own, on the same 4,096 random pictures of 32 px, and says the most memory it held and
the seconds of the step. `--whole` also takes 4,096 at once, which needs some ten times the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

LARGE, SMALL = 4096, 256


def one_step(batch_size: int, micro_batch: int, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from labelfree import runtime
    from labelfree.training import job as jobs
    from labelfree.training.plan import make_plan

    runtime.prepare_machine(options.threads)
    pictures = np.random.default_rng(0).integers(0, 255, (LARGE, 32, 32, 3), dtype=np.uint8)
    settings = {"batch_size": batch_size, "micro_batch": micro_batch, "threads": options.threads, "cache": "memory"}
    plan, data, dataset, _ = make_plan(
        pictures, modality="image", method="simclr", encoder=options.encoder, seed=0, seconds=None, settings=settings
    )
    training = jobs.new_training(jobs.assemble(plan, data, dataset, steps=1), torch.device("cpu"))
    batch = next(iter(training.loader.steps(0, 1)))
    before, began = runtime.peak_memory(torch.device("cpu")), time.perf_counter()
    training.step(0, batch)
    seconds = time.perf_counter() - began
    most = runtime.peak_memory(torch.device("cpu"))
    return {"peak_mb": round(most / 1e6), "before_mb": round(before / 1e6), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm:resnet18")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--side", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_step(*options.side, options)))
        return
    sides = [(SMALL, 0), (LARGE, SMALL), *([(LARGE, 0)] if options.whole else [])]
    for batch_size, micro_batch in sides:
        words = [sys.executable, __file__, "--encoder", options.encoder, "--threads", str(options.threads)]
        words += ["--side", str(batch_size), str(micro_batch)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        print(f"batch_size={batch_size} micro_batch={micro_batch}: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
