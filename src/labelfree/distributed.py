"""The little that objectives need to know of other processes.

The rule that makes R processes equal to one: each process returns a loss whose mean over processes is the loss of the
global batch. Gradients are averaged over processes, and those through `gather` are summed back to where they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # what comes in may be another's gradient too
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """(B, ...) → (R·B, ...): rows of all processes in the order of the global batch; differentiable."""
    return x if world_size() == 1 else _Gather.apply(x)


def places(x: Tensor) -> Tensor:
    """(B,) int64 places of this process's rows `x` (B, ...) among those that `gather` gives."""
    return torch.arange(len(x), device=x.device) + rank() * len(x)


def all_lists(mine: list[Any]) -> list[Any]:
    """The items of all processes' lists, which can be pickled. Every process has to ask."""
    if world_size() == 1:
        return mine
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, mine)
    return [item for part in found for item in part]


def of_others(tensors: Sequence[Tensor], number: int) -> list[Tensor]:
    """(B, ...) each → the rows of other samples of the global batch: all are shifted alike, as far as `number` says.

    Args:
        number: the same on every process.
    """
    total = len(tensors[0]) * world_size()
    shift = 1 + number % max(1, total - 1)
    rows = (places(tensors[0]) + shift) % total
    return [gather(tensor)[rows] for tensor in tensors]


def largest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers. In several processes the host waits for the device."""
    if world_size() == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over processes; differentiable."""
    return x if world_size() == 1 else _Sum.apply(x)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """This process's part of Σ wv / Σ w over the global batch: its mean over processes is exactly that.

    Use it wherever the number of terms differs between samples (masked tokens, padding).
    """
    weights = weights.to(values.dtype)
    total = all_sum(weights.sum().detach()) / world_size()
    return (values * weights).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def whole(x: Tensor) -> Tensor:
    """A tensor with all its rows: that of a sharded one put together (all processes must ask), any other as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def whole_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` with every tensor whole; all processes must ask."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def shard_like(x: Tensor, other: Tensor) -> Tensor:
    """This process's shard of the whole tensor `x`, cut as `other` is; `x` itself where `other` is not sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor):
        return x
    return distribute_tensor(x.to(other.device), other.device_mesh, other.placements)
