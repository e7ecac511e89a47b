"""Pictures a second of SimCLR with ResNet-18 at 32 px, batch 256: Labelfree beside the PyPI package `lightly`.

    pip install lightly
    python benchmarks/throughput.py [--rounds 3] [--steps 4] [--precision auto|32] [--threads 2]

Both sides start from the same pictures as 8-bit arrays in memory, read, augment (crop, flip, colour, grey; no blur) and
train the same network (3×3 stem, no max-pool) with a two-layer head, NT-Xent and SGD. Ours is the engine's own loop;
lightly's is put together as its documentation does: its transform in a DataLoader with a worker for each core, its
loss and head, torchvision's network. Each side runs in a process of its own, the two take turns, and the first step of
a process is not counted. Printed are medians over rounds of pictures a second, and a CPU second (which tells more where
other work shares the machine).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

BATCH = 256
SIDES = ("labelfree", "lightly")


class Watch:
    """Wall-clock and CPU seconds of this process and its workers, step by step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        own = resource.getrusage(resource.RUSAGE_SELF)
        cpu = own.ru_utime + own.ru_stime + _workers_cpu()
        self.marks.append((time.perf_counter(), cpu))

    def rates(self) -> dict[str, float]:
        (start, cpu_start), (stop, cpu_stop) = self.marks[0], self.marks[-1]
        pictures = BATCH * (len(self.marks) - 1)
        return {"wall": pictures / (stop - start), "cpu": pictures / (cpu_stop - cpu_start)}


def _workers_cpu() -> float:
    import psutil

    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in times)


def pictures(count: int) -> np.ndarray:
    """(count, 32, 32, 3) smooth random pictures; what is in them does not matter for speed."""
    coarse = np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3))
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


def labelfree(options: argparse.Namespace) -> dict[str, float]:
    """Rates of Labelfree's engine."""
    import torch

    from labelfree import runtime
    from labelfree.training import job as jobs
    from labelfree.training import loop
    from labelfree.training.plan import make_plan

    runtime.prepare_machine(options.threads)
    settings = {
        "batch_size": BATCH,
        "optimizer": "sgd",
        "learning_rate": 0.06,
        "precision": options.precision,
        "threads": options.threads,
        "projector": (512, 128),
        "augment": "S",
        "blur": 0.0,
        "log_every": 1,
        "checkpoint_every": 10**6,
    }
    source = pictures(options.count)
    plan, data, dataset, _ = make_plan(
        source, modality="image", method="simclr", encoder="timm:resnet18", seed=0, seconds=None, settings=settings
    )
    job = jobs.assemble(plan, data, dataset, steps=options.steps + 1)
    training = jobs.new_training(job, torch.device("cpu"))
    watch = Watch()
    tell = loop.Callbacks(
        log=lambda step, line: None, save=lambda step: None, tick=lambda step: watch.mark(), warn=lambda words: None
    )
    loop.train(training, 0, loop.StopRequest(), tell)
    return watch.rates()


def lightly(options: argparse.Namespace) -> dict[str, float]:
    """Rates of a training put together from lightly's parts, in float32 as its documentation has it."""
    import torch
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch import nn

    class Pictures(torch.utils.data.Dataset[Any]):
        """As torchvision's CIFAR10: an array in memory, a picture at a time through Pillow and the transform."""

        def __init__(self) -> None:
            self.pictures = pictures(options.count)
            self.transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.fromarray(self.pictures[index]))

    torch.set_num_threads(options.threads)
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    head, criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss()
    model = nn.Sequential(network, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1
    )
    watch = Watch()
    for (first, second), _ in zip(loader, range(options.steps + 1), strict=False):
        loss = criterion(model(first), model(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        watch.mark()
    return watch.rates()


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a fresh process."""
    words = [f"--{key}={getattr(options, key)}" for key in ("steps", "precision", "threads", "count")]
    done = subprocess.run(
        [sys.executable, __file__, f"--side={side}", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a round")
    parser.add_argument("--precision", default="auto", help="ours: auto (bf16 where the hardware has it) or 32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--count", type=int, default=8192, help="pictures in the source")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"labelfree": labelfree, "lightly": lightly}[options.side](options)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            found[side].append(measure(side, options))
            rates = found[side][-1]
            print(f"round {number + 1} {side:>9}: {rates['wall']:.1f} pictures/s, {rates['cpu']:.1f}/CPU s", flush=True)
    for kind, words in (("wall", "pictures a second"), ("cpu", "pictures a CPU second")):
        ours, theirs = (statistics.median(rates[kind] for rates in found[side]) for side in SIDES)
        print(f"{words}: labelfree {ours:.1f}, lightly {theirs:.1f}, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
