"""What objectives remember of samples seen before: the newest of all, or one vector for each.

A vector that is not finite is not taken in: on a GPU a step's memories are written before the host knows that the step
went wrong, and one such row would spoil every loss that meets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labelfree.distributed import gather


class Queue(nn.Module):
    """The newest rows of the global batches, first in, first out (He et al. 2020, MoCo, §3.1).

    Arguments:
        size: K, how many it holds.
        width: D.
    """

    rolled_back: ClassVar[bool] = False
    rows: Tensor
    owner: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        #: (K,) int64 indices of the samples that they are of; -1 where there is none yet
        self.register_buffer("owner", torch.full((size,), -1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, x: Tensor, index: Tensor) -> None:
        """Rows x (B, D) of this process's samples `index` (B,); those of all processes go in, in the batch's order."""
        x, index = gather(x), gather(index)
        size = len(self.rows)
        x, index = x[-size:].to(self.rows.dtype), index[-size:]
        place = (self.pushed + torch.arange(len(x), device=x.device)) % size
        whole = x.isfinite().all(dim=1)
        self.rows[place] = torch.where(whole[:, None], x, self.rows[place])
        self.owner[place] = torch.where(whole, index, self.owner[place])
        self.pushed += len(x)


class Bank(nn.Module):
    """One vector for each sample of the source, zero until it is written (Wu et al. 2018, §3.2).

    Arguments:
        samples: N.
        width: D.
    """

    rolled_back: ClassVar[bool] = False
    rows: Tensor

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(samples, width))

    @torch.no_grad()
    def write(self, x: Tensor, index: Tensor) -> None:
        """Vectors x (B, D) of this process's samples `index` (B,); those of all processes are written."""
        x, index = gather(x), gather(index)
        x = x.to(self.rows.dtype)
        self.rows[index] = torch.where(x.isfinite().all(dim=1, keepdim=True), x, self.rows[index])


def sized_by_state(objective: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before an objective loads its state: give it a `bank` of the size in there, unless `expect` gave it one."""
    rows = state.get(f"{prefix}bank.rows")
    if objective.bank is None and rows is not None:
        objective.expect(len(rows))
