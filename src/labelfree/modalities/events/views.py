"""Events as tokens: the recent histories of an event's two ends, merged in order of time, the event itself last.

Legend: B events, K history events an end, T = 2K + 1 slots, F features of an event, C = F + S channels of a token.
A raw batch has K slots of the source's history, K of the target's, and the event; an empty slot has number -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw, hash_int
from labelfree.distributed import of_others

#: Channels that say how a token stands to the event: its age and the pause before it; whether the event's source is its
#: source, its target, and whether the event's target is; how often its other node is met in the history of the event's
#: source and of its target (the co-occurrence of Yu et al. 2023, DyGFormer, §4.1); whether it is the event.
STRUCTURE = 9


def merge(batch: Batch) -> Batch:
    """Slots in the order in which they happened, events of both histories once, empty ones at the end (`lengths`)."""
    number = batch.extra["number"]
    half = number.shape[1] // 2
    absent = number < 0
    twice = (number[:, half:-1, None] == number[:, None, :half]).any(dim=2)
    absent = absent | torch.nn.functional.pad(twice, (half, 1))
    most = torch.iinfo(torch.int64).max
    key = number.masked_fill(absent, most)
    key[:, -1] = most - 1
    order = key.argsort(dim=1)
    assert batch.time is not None
    rows = torch.arange(len(order), device=order.device)[:, None]
    gone = absent.gather(1, order)
    nodes = batch.extra["nodes"][rows, order].masked_fill(gone[..., None], -1)
    return batch.with_(
        data=batch.data[rows, order].masked_fill(gone[..., None], torch.nan),
        time=batch.time.gather(1, order).masked_fill(gone, torch.nan),
        lengths=(~absent).sum(dim=1),
        extra={**batch.extra, "nodes": nodes, "number": number.gather(1, order).masked_fill(gone, -1)},
    )


def structure(batch: Batch, gap: float) -> Tensor:
    """(B, T, S) structural channels of a merged batch, NaN where a slot is empty; `gap` seconds are a usual pause."""
    assert batch.lengths is not None
    assert batch.time is not None
    valid = real_tokens(batch)
    last = batch.lengths[:, None] - 1
    nodes, time = batch.extra["nodes"], batch.time
    ends = nodes[torch.arange(len(nodes), device=nodes.device), last[:, 0]]
    event = torch.arange(nodes.shape[1], device=nodes.device) == last
    age = ((time.gather(1, last) - time) / gap).clamp_min(0).log1p()
    pause = ((time - time.roll(1, dims=1)) / gap).clamp_min(0).log1p()
    pause[:, 0] = torch.nan
    flags = nodes[:, :, None, :] == ends[:, None, :, None]  # (B, T, end of the event, end of the token)
    touches = flags.any(dim=3) & valid[..., None]
    other = torch.where(flags[..., 0], nodes[:, :, 1:], nodes[:, :, :1])  # as each end of the event sees it
    met = torch.where(touches[:, :, 0], other[..., 0], other[..., 1])[:, :, None, None] == other[:, None]
    counts = (met & (touches & ~event[..., None])[:, None]).sum(dim=2).float().log1p()
    found = torch.cat([age[..., None], pause[..., None], flags.flatten(2), counts, event[..., None]], dim=2)
    return found.float().masked_fill(~valid[..., None], torch.nan)


def real_tokens(batch: Batch) -> Tensor:
    """(B, T) bool, true where a slot of a merged batch holds an event."""
    assert batch.lengths is not None
    return torch.arange(batch.data.shape[1], device=batch.data.device) < batch.lengths[:, None]


def thin(batch: Batch, draw: Draw, span: float, masking: float) -> Batch:
    """A random stretch of each end's history, at least the share `span` of it; some events without their features."""
    number = batch.extra["number"]
    half = number.shape[1] // 2
    known = (number[:, :-1] >= 0).unflatten(1, (2, half))
    have = known.sum(dim=2)
    share = draw.uniform("span", 2, low=span, high=1.0)
    keep = (have * share).ceil()
    start = (draw.uniform("start", 2) * (have - keep + 1)).floor()
    place = known.cumsum(dim=2) - 1
    inside = (place >= start[..., None]) & (place < (start + keep)[..., None])
    number = torch.cat([number[:, :-1].masked_fill(~inside.flatten(1), -1), number[:, -1:]], dim=1)
    hidden = draw.bernoulli("masking", masking, number.shape[1])
    return batch.with_(
        data=batch.data.masked_fill(hidden[..., None], torch.nan), extra={**batch.extra, "number": number}
    )


def replaced(batch: Batch, which: Tensor, draw: Draw, features: bool) -> Batch:
    """Events of which something was replaced by that of another event of the global batch.

    Args:
        which: (B,) 0 nothing, 1 the target with its history, 2 the pause before the event, 3 (where `features`) the
            features.
    """
    assert batch.time is not None
    number, nodes, time, data = batch.extra["number"], batch.extra["nodes"], batch.time, batch.data
    half = number.shape[1] // 2
    theirs = slice(half, 2 * half)
    swap = (which == 1)[:, None]
    other = of_others((data, time, number, nodes), hash_int(draw.batch, 5))
    # What a later event's history holds from after this one would give the exchange away.
    other[2] = other[2].masked_fill(other[2] >= number[:, -1:], -1)
    pause = _pause(other[1])
    moved = time[:, :-1].nan_to_num(-torch.inf).amax(dim=1) + pause
    moved = torch.where((which == 2) & moved.isfinite(), moved, time[:, -1])
    stranger = torch.where(swap, other[3][:, -1, 1:], nodes[:, -1, 1:])
    nodes = torch.cat(
        [
            nodes[:, :half],
            torch.where(swap[..., None], other[3][:, theirs], nodes[:, theirs]),
            torch.stack([nodes[:, -1, 0], stranger[:, 0]], dim=1)[:, None],
        ],
        dim=1,
    )
    event = torch.where((which == 3)[:, None], other[0][:, -1], data[:, -1]) if features else data[:, -1]
    data = torch.cat(
        [data[:, :half], torch.where(swap[..., None], other[0][:, theirs], data[:, theirs]), event[:, None]], dim=1
    )
    time = torch.cat([time[:, :half], torch.where(swap, other[1][:, theirs], time[:, theirs]), moved[:, None]], dim=1)
    number = torch.cat([number[:, :half], torch.where(swap, other[2][:, theirs], number[:, theirs]), number[:, -1:]], 1)
    return batch.with_(data=data, time=time, extra={**batch.extra, "number": number, "nodes": nodes})


def _pause(time: Tensor) -> Tensor:
    """(B,) seconds from the last event of either end to the event, NaN where there was none."""
    latest = time[:, :-1].nan_to_num(-torch.inf).amax(dim=1)
    return torch.where(latest.isfinite(), time[:, -1] - latest, torch.nan)
