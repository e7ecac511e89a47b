"""Batches of ids turned into views: pure functions, all samples at once.

Legend: B samples, T ids of a raw batch, N = tokens of a view. A raw batch has no class token; a view begins with one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw, hash_int
from labelfree.distributed import largest

#: Shortest random span, as a share of the longest (Izacard et al. 2022, Contriever, §3.1 draws lengths at random too).
SHORTEST = 0.5


def spans(data: Tensor, start: Tensor, length: Tensor, width: int, pad: int) -> Tensor:
    """(B, T) ids → (B, width): of each row `length` (B,) ids from `start` (B,) on, then padding."""
    place = torch.arange(width, device=data.device)
    taken = data.gather(1, (start[:, None] + place).clamp(0, data.shape[1] - 1))
    return torch.where(place < length[:, None], taken, pad)


def begin(data: Tensor, cls: int) -> Tensor:
    """Put the class token in front: (B, T) → (B, T + 1)."""
    return torch.cat([data.new_full((len(data), 1), cls), data], dim=1)


def random_span(batch: Batch, draw: Draw, longest: int, pad: int) -> Batch:
    """A random stretch of each sample, of between `SHORTEST` and all of what fits into `longest` ids."""
    length = batch.steps()
    most = length.clamp(max=longest)
    size = (most * draw.uniform("span", low=SHORTEST, high=1.0)).ceil().long().clamp_min(1).minimum(most)
    start = (draw.uniform("start") * (length - size + 1)).long()
    width = min(longest, batch.data.shape[1])
    return batch.with_(data=spans(batch.data, start, size, width, pad), lengths=size)


def widened(batch: Batch, pad: int) -> Batch:
    """A raw batch padded to the width of the process with the longest texts: what is gathered must have one shape, and
    what is drawn for the whole batch must not depend on how it is shared out.
    """
    width = batch.data.shape[1]
    missing = largest(width, batch.data.device) - width
    return batch.with_(data=F.pad(batch.data, (0, missing), value=pad), lengths=batch.steps()) if missing else batch


def delete(batch: Batch, draw: Draw, share: float, pad: int) -> Batch:
    """Leave out each id with probability `share`; every sample keeps at least one."""
    length = batch.steps()
    width = batch.data.shape[1]
    real = torch.arange(width, device=batch.data.device) < length[:, None]
    kept = ~draw.bernoulli("delete", share, width) & real
    kept[:, 0] |= ~kept.any(dim=1)
    order = (~kept).byte().argsort(dim=1, stable=True)
    left = kept.sum(dim=1)
    place = torch.arange(width, device=left.device)
    return batch.with_(data=torch.where(place < left[:, None], batch.data.gather(1, order), pad), lengths=left)


def overlapping(batch: Batch, draw: Draw, pad: int) -> tuple[Batch, Batch, int, int]:
    """Two stretches that overlap, the second beginning later (Yue et al. 2022, TS2Vec, §3.2).

    Where they begin and end is drawn once for the whole batch, from the widest sample: no tensor's shape then depends
    on values on the device.

    Returns:
        both raw batches, the second's beginning in the first, and how many ids they share.
    """
    batch = widened(batch, pad)
    width = batch.data.shape[1]

    def pick(name: int, high: int) -> int:
        return hash_int(draw.batch, name) % high

    shared = 1 + pick(0, width)
    left = pick(1, width - shared + 1)
    first = pick(2, left + 1)
    last = left + shared + pick(3, width - left - shared + 1)
    one = _stretch(batch, first, left + shared, pad)
    two = _stretch(batch, left, last, pad)
    return one, two, left - first, shared


def _stretch(batch: Batch, start: int, stop: int, pad: int) -> Batch:
    """ids `start` … `stop`-1 of every sample; one that ends before keeps a single padding id."""
    lengths = None if batch.lengths is None else (batch.lengths - start).clamp(1, stop - start)
    return batch.with_(data=batch.data[:, start:stop], lengths=lengths)


def halves(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B,) ids in the first half of each sample, and in the second."""
    length = batch.steps()
    first = (length + 1) // 2
    return first, length - first


def join(parts: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor], sep: int, pad: int) -> tuple[Tensor, Tensor]:
    """First part, separator, second part: ids (B, width) and their lengths (B,)."""
    (a, b), (first, second) = parts, lengths
    width = a.shape[1] + 1 + b.shape[1]
    place = torch.arange(width, device=a.device).expand(len(a), -1)
    from_a = a.gather(1, place.clamp(max=a.shape[1] - 1))
    from_b = b.gather(1, (place - first[:, None] - 1).clamp(0, b.shape[1] - 1))
    data = torch.where(place < first[:, None], from_a, torch.where(place == first[:, None], sep, from_b))
    total = first + 1 + second
    return torch.where(place < total[:, None], data, pad), total
