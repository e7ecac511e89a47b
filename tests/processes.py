"""Run a function in several processes that talk over gloo, as training on several devices does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        torch.save(function(rank, *args), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def together(function: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """What `function(rank, *args)` returns in each of `world` processes (tensors, and containers of them)."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (world, folder, function, args), nprocs=world)
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(world)]


def average_gradients(module: torch.nn.Module) -> None:
    """What data-parallel training does after the backward pass."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
