"""How much memory a loss takes, without taking it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most that ever were."""

    now = most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        return out

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def most_bytes(loss: Callable[..., Tensor], count: int, width: int) -> int:
    """Most bytes that forward and backward of a loss of two (count, width) tensors hold at a time, counted with tensors
    that have shapes and no values; autocast does not know these, so that the loss must not switch it off.
    """
    inputs = [torch.empty(count, width, device="meta", requires_grad=True) for _ in range(2)]
    with Held() as held:
        loss(*inputs).backward()
    return held.most
