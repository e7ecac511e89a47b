"""Seconds that the convolutions of one SimCLR step take alone: the floor under `throughput.py`.

    python benchmarks/convolutions.py [--threads 2] [--rounds 5]

ResNet-18 with a 3×3 stem on 512 views of 32 px, forward and backward, each convolution by itself on memory that is
warm, in bf16 with channels last (as Labelfree trains) and in float32 (as lightly's documentation does). No step of the
same network can be faster than their sum, however little normalisation, augmentation, loss and optimiser cost.
"""

from __future__ import annotations

import argparse
import os
import timeit
from collections.abc import Callable

import torch

from labelfree import runtime

VIEWS = 512
#: Channels in and out, side of the input, kernel, stride, and how many of these there are.
LAYERS = [(3, 64, 32, 3, 1, 1), (64, 64, 32, 3, 1, 4)]
LAYERS += [(64, 128, 32, 3, 2, 1), (64, 128, 32, 1, 2, 1), (128, 128, 16, 3, 1, 3)]
LAYERS += [(128, 256, 16, 3, 2, 1), (128, 256, 16, 1, 2, 1), (256, 256, 8, 3, 1, 3)]
LAYERS += [(256, 512, 8, 3, 2, 1), (256, 512, 8, 1, 2, 1), (512, 512, 4, 3, 1, 3)]


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls; the first is not counted."""
    run()
    return min(timeit.repeat(run, number=1, repeat=rounds))


def step(kind: torch.dtype, rounds: int) -> float:
    """Seconds of all convolutions of a step, forward and backward."""
    total = 0.0
    order = torch.channels_last if kind == torch.bfloat16 else torch.contiguous_format
    for inputs, outputs, side, kernel, stride, count in LAYERS:
        x = torch.randn(VIEWS, inputs, side, side).to(kind).contiguous(memory_format=order)
        weight = torch.randn(outputs, inputs, kernel, kernel).to(kind).contiguous(memory_format=order)
        shape = ([stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1)
        gradient = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *shape))
        wanted = [inputs > 3, True, False]  # nobody asks for the gradient of the pictures
        forward = best(lambda x=x, w=weight, s=shape: torch.ops.aten.convolution(x, w, None, *s), rounds)
        backward = best(
            lambda g=gradient, x=x, w=weight, s=shape, m=wanted: torch.ops.aten.convolution_backward(
                g, x, w, None, *s, m
            ),
            rounds,
        )
        total += count * (forward + backward)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    runtime.prepare_machine(options.threads)
    work = sum(count * 6 * VIEWS * i * o * k * k * (side // s) ** 2 for i, o, side, k, s, count in LAYERS)
    for kind in (torch.bfloat16, torch.float32):
        seconds = step(kind, options.rounds)
        print(f"{kind}: {seconds:.2f} s, {work / seconds / 1e9:.0f} GFLOP/s, {VIEWS / 2 / seconds:.1f} pictures/s")


if __name__ == "__main__":
    main()
