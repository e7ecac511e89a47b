"""Run a function in several processes that talk over gloo, as training on several devices does."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from labelfree.cli import main

#: How processes start: what they all import is imported once, in the server that they are forked from.
FORKED = "forkserver"
multiprocessing.set_forkserver_preload(["torch._dynamo", "timm", "labelfree.training.pretrain"])


def _enter(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(minutes=3)
    )
    try:
        torch.save(function(rank, *args), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def together(function: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """What `function(rank, *args)` returns in each of `world` processes (tensors, and containers of them)."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_enter, (world, folder, function, args), nprocs=world, start_method=FORKED)
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(world)]


def _command(words: list[str], said: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with said.open("w", encoding="utf-8", buffering=1) as sys.stderr:
        sys.exit(main(words))


def command(words: list[str], said: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """A command in a process of its own, begun; what it says goes to a file.

    How an interpreter starts from nothing is tried where that is the question; elsewhere it would import for seconds.
    """
    process = multiprocessing.get_context(FORKED).Process(target=_command, args=(words, said, environment or {}))
    process.start()
    return process


def average_gradients(module: torch.nn.Module) -> None:
    """What data-parallel training does after the backward pass: all in one message, since each waits for the others."""
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, mean in zip(grads, (flat / dist.get_world_size()).split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
