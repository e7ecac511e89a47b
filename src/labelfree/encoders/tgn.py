"""Temporal graph networks: each node has a memory that its events write to, read beside its recent history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.distributed import gather
from labelfree.encoders._geometric import geometric
from labelfree.encoders.base import Encoder, Features
from labelfree.encoders.transformer import SIZES
from labelfree.errors import LabelfreeError, Refusal, nearest
from labelfree.losses.precision import full_precision
from labelfree.modalities.base import Modality
from labelfree.modalities.events.views import real_tokens

#: The memory counts time in whole numbers: so many to a usual pause.
TICKS = 1000
#: Of the graph attention.
HEADS = 2


class Clock(nn.Module):
    """The encoding of time of Xu et al. 2020 (TGAT, §3.1), of the logarithm: pauses span orders of magnitude."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin = nn.Linear(1, dim)  # where PyG's memory looks for it

    def forward(self, ticks: Tensor) -> Tensor:
        return self.lin((ticks / TICKS).clamp_min(0).log1p()[:, None]).cos()

    def reset_parameters(self) -> None:
        self.lin.reset_parameters()


class TGN(Encoder):
    """`tgn:pico|nano|tiny|small|base`: the memory, messages and graph attention of Rossi et al. 2020 (TGN, §3) from
    PyTorch Geometric, on the histories that come with each event.

    In training, batches must follow one another; a batch that does not (the first of an epoch) begins with an empty
    memory. Otherwise the memory stands still until `remember` is called. It has two places for each node of the
    training source; nodes beyond share them.
    """

    name = "tgn"
    modalities = frozenset({"events"})
    remembers = True
    #: Events have happened, whatever became of the step.
    rolled_back = False

    def __init__(self, channels: int, features: int, nodes: int, dim: int) -> None:
        super().__init__()
        pyg = geometric()
        parts = pyg.models.tgn
        self.dim, self.slots = dim, max(2, 2 * nodes)
        message = parts.IdentityMessage(features, dim // 2, dim // 2)
        self.memory: Any = parts.TGNMemory(self.slots, features, dim // 2, dim // 2, message, parts.LastAggregator())
        self.memory.time_enc = Clock(dim // 2)
        self.memory.rolled_back = False
        self.memory._assoc.zero_()  # PyG leaves it as it found it, and states must be equal to the bit
        self.attention = pyg.TransformerConv(dim // 2, dim // HEADS, heads=HEADS, edge_dim=channels)
        self.event = nn.Linear(channels, dim)
        self.mix = nn.Sequential(nn.Linear(4 * dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.position: Tensor
        self.origin: Tensor
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("origin", torch.zeros((), dtype=torch.float64))

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        variant = variant or "nano"
        if variant not in SIZES:
            raise LabelfreeError(
                f"There is no size '{variant}' of tgn: there are {', '.join(SIZES)}.", nearest(variant, SIZES)
            )
        if causal:
            raise Refusal("Encoder 'tgn' gives one vector an event and no tokens.", "Use --encoder transformer:nano.")
        own = cast(Any, modality)
        return cls(own.channels, own.features, own.nodes, SIZES[variant].dim)

    @classmethod
    def variants(cls) -> list[str]:
        return list(SIZES)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        if self.training and int(gather(batch.index).min()) != int(self.position):
            self.reset()
        memory, around = self._surroundings(batch)
        rows = torch.arange(len(batch), device=batch.data.device)
        assert batch.lengths is not None
        event = self.event(batch.data[rows, batch.lengths - 1].nan_to_num())
        if self.training:
            self.remember(batch)
        return Features(self.mix(torch.cat([memory, around, event], dim=1)))

    def _surroundings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) memories of both ends, and (B, 2D) what their recent events and the memories of others there say."""
        assert batch.lengths is not None
        nodes, last = batch.extra["nodes"], batch.lengths - 1
        count, slots = nodes.shape[:2]
        here = torch.arange(count, device=nodes.device)
        ends = nodes[here, last]
        past = real_tokens(batch) & (torch.arange(slots, device=nodes.device) != last[:, None])
        acts, suffers = nodes[:, :, None, 0] == ends[:, None], nodes[:, :, None, 1] == ends[:, None]
        other = torch.where(acts, nodes[:, :, None, 1], nodes[:, :, None, 0])
        z = self._read(torch.cat([ends.flatten(), other.flatten().clamp_min(0)]))
        # One disjoint graph: an edge from each other node to its end; empty slots point to a node that nobody reads.
        x = torch.cat([z, z.new_zeros(1, z.shape[1])])
        root = 2 * here[:, None, None] + torch.arange(2, device=nodes.device)
        root = torch.where((acts | suffers) & past[..., None], root, len(z)).flatten()
        edges = torch.stack([torch.arange(2 * count, len(z), device=nodes.device), root])
        told = batch.data.nan_to_num()[:, :, None].expand(-1, -1, 2, -1).flatten(0, 2)
        around = self.attention(x, edges, told)[: 2 * count]
        return z[: 2 * count].reshape(count, -1), around.reshape(count, -1)

    @full_precision  # the memory is kept so, and PyG writes what it computes there as it is
    def _read(self, nodes: Tensor) -> Tensor:
        """(M,) → (M, D / 2) memories as they are now."""
        places, back = (nodes % self.slots).unique(return_inverse=True)
        return self.memory(places)[0][back]

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        return super().train(mode)  # PyG's memory takes in the messages that wait

    @torch.inference_mode(False)
    def reset(self) -> None:
        self.memory.reset_state()
        self.position.zero_()

    @torch.no_grad()
    def remember(self, view: Batch) -> None:
        """What really happened, once: views of the same event, and those of other processes, are put together."""
        index, back = gather(view.index).unique(return_inverse=True)
        row = torch.arange(len(back), device=back.device)
        first = torch.full_like(index, len(back)).scatter_reduce(0, back, row, "amin")
        ends, when, message = (gather(view.extra[key])[first] for key in ("happened", "when", "message"))
        self.origin.copy_(torch.where(self.position == 0, when[0], self.origin))
        ticks = ((when - self.origin) * TICKS).long()
        with torch.autocast(index.device.type, enabled=False):
            self.memory.update_state(*(ends % self.slots).unbind(1), ticks, message)
        self.position.copy_(index[-1] + 1)

    # Messages that wait for a node's next event are part of the state, so that a training resumes exactly.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for store in (self.memory.msg_s_store, self.memory.msg_d_store):
            store.update({node: tuple(map(fn, entry)) for node, entry in store.items()})
        return self

    def get_extra_state(self) -> Tensor:
        """(M, 4 + F) float64: which store, source, target, ticks, and the event's features."""
        found = [torch.zeros(0, 4 + self.memory.raw_msg_dim, dtype=torch.float64)]
        for number, store in enumerate((self.memory.msg_s_store, self.memory.msg_d_store)):
            kept = [entry for entry in store.values() if len(entry[0])]
            if kept:
                source, target, ticks, message = (
                    torch.cat(column).cpu().double() for column in zip(*kept, strict=True)
                )
                head = torch.stack([torch.full_like(source, number), source, target, ticks], dim=1)
                found.append(torch.cat([head, message], dim=1))
        return torch.cat(found)

    def set_extra_state(self, state: Tensor) -> None:
        self.memory._reset_message_store()
        device = self.memory.memory.device
        for number, store in enumerate((self.memory.msg_s_store, self.memory.msg_d_store)):
            rows = state[state[:, 0] == number]
            nodes, counts = rows[:, 1].long().unique_consecutive(return_counts=True)
            for node, part in zip(nodes.tolist(), rows.split(counts.tolist()), strict=True):
                ids = part[:, 1:4].long().to(device)
                store[node] = (*ids.unbind(1), part[:, 4:].float().to(device))
