"""What objectives do beside the encoder, as a share of a step (with ResNet-18).

    python benchmarks/objectives.py [--methods moco-resnet,swav-resnet] [--encoder SPEC] [--batch-size 256]

The encoder's part is forward and backward of as many views as the objective looks at, 32 px, and the optimiser's step.
An objective's own work is all the rest: heads, decoders, loss, queue, memory, Sinkhorn's iterations, forward and
backward, the moving of a teacher; it is timed with an encoder that only hands out features of the same width. A
teacher's forward is the encoder's work done again and counts as that. Pictures are not augmented, heads not moved by
the optimiser, small crops left out, and DeepCluster's k-means, once a pass, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from labelfree import registry, runtime
from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder, Features
from labelfree.modalities.image import Image, ImageSettings
from labelfree.needs import Need
from labelfree.objectives._teacher import follow, frozen_copy

SAMPLES, SIZE, WIDTH = 50_000, 32, 512


class Handed(Encoder):
    """Hands out features, of which the gradient is asked for."""

    dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    @classmethod
    def build(cls, variant: str, modality: Any, causal: bool = False) -> Encoder:
        return cls()

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        self.rows += len(batch)
        return Features(batch.extra["features"] + self.shift)


class AsTheyAre(Image):
    """Pictures whose views are the pictures."""

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        return batch.with_(draw=draw)


def median(run: Callable[[], object], times: int) -> float:
    """Seconds, after one turn that does not count."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def encoder_seconds(spec: str, batch_size: int, times: int) -> tuple[float, float, float]:
    """Seconds of a training step of a network on two views, of a forward without gradient, and of moving a teacher."""
    encoder = registry.build_encoder(spec, Image(ImageSettings(size=SIZE))).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    views = Batch(torch.randn(2 * batch_size, 3, SIZE, SIZE), torch.arange(2 * batch_size))

    def step() -> None:
        encoder(views).pooled.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.no_grad():
            encoder(views)

    teacher = frozen_copy(encoder)
    return median(step, times), median(forward, times), median(lambda: follow(teacher, encoder, 0.99), 5)


def own_seconds(method: str, batch_size: int, times: int) -> tuple[float, int, bool]:
    """Seconds of an objective's own work in a step, but for the moving of a teacher; how many views of each sample it
    looks at; and whether it has a teacher.
    """
    cls, recipe = registry.method(method)
    crops = {"local_crops": 0} if "local_crops" in cls.settings_class.model_fields else {}
    settings = cls.settings_class.read({**(recipe.settings if recipe else {}), **crops}, method)
    encoder = Handed()
    objective = cls(encoder, AsTheyAre(ImageSettings(size=SIZE)), settings).train()
    objective.expect(SAMPLES)
    numbers = iter(range(10**6))

    def step() -> None:
        number = next(numbers)
        index = (torch.arange(batch_size) + number * batch_size) % SAMPLES
        pictures, features = torch.randn(batch_size, 3, SIZE, SIZE), torch.randn(batch_size, WIDTH)
        batch = Batch(pictures, index, extra={"features": features})
        objective(batch, Draw.start(0, 0, number, index)).loss.backward()
        objective.zero_grad(set_to_none=True)
        objective.after_step(0.5)

    seconds = median(step, times)
    return seconds, encoder.rows // (batch_size * next(numbers)), hasattr(objective, "teacher_encoder")


def methods() -> list[str]:
    """The recipes for small pictures of objectives on views, and the objectives that have none."""
    views = [
        name
        for name, (cls, _) in registry.recipes().items()
        if name.endswith("-resnet") and cls.needs == frozenset({Need.VIEWS})
    ]
    return [*views, "triplet", "rotation", "autoencoder", "vae"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="")
    parser.add_argument("--encoder", default="timm:resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    runtime.prepare_machine(options.threads)
    step, forward, moving = encoder_seconds(options.encoder, options.batch_size, options.times)
    rows = {}
    for method in options.methods.split(",") if options.methods else methods():
        own, views, teacher = own_seconds(method, options.batch_size, options.times + 1)
        own += moving * teacher
        whole = step * views / 2 + forward * teacher + own
        rows[method] = {"own_seconds": round(own, 3), "share": round(own / whole, 4), "views": views}
        print(f"{method:22} {own:7.3f} s  {100 * own / whole:5.1f} %{'  (teacher)' if teacher else ''}", flush=True)
    seconds = {"encoder": round(step, 3), "teacher_forward": round(forward, 3), "teacher_moving": round(moving, 4)}
    print(json.dumps({"seconds": seconds, "methods": rows, "settings": vars(options), **runtime.hardware()}))


if __name__ == "__main__":
    main()
