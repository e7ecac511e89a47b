"""What every batch needs beside it on its device, brought there once: for each copy from the CPU a GPU is waited for.

Training needs it as well as embedding, which may come first: it is never a tensor of inference mode.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_copies = WeakIdKeyDictionary()


@torch.inference_mode(False)
def on_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device; copies are kept as long as `x`, which must not change."""
    if x.device == device:
        return x
    copies = _copies.setdefault(x, {})
    if device not in copies:
        copies[device] = x.to(device)
    return copies[device]


@lru_cache
@torch.inference_mode(False)
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A tensor of these values."""
    return torch.tensor(values, device=device)
