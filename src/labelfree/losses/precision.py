"""Losses are computed in float32, whatever precision the network ran in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_HALVES = (torch.bfloat16, torch.float16)


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Decorator: half-precision tensors arrive as float32 and autocast is off inside.

    Casting alone would not do: autocast turns every matrix product back to bfloat16, and a similarity divided by a
    small temperature then keeps two digits.
    """

    def raised(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value

    @wraps(loss)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*(raised(value) for value in args), **{key: raised(v) for key, v in kwargs.items()})

    return inside
