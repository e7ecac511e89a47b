"""What travels: samples read from a source, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelfree.data.draw import Draw


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a source in the compact form that a cache keeps.

    Attributes:
        data: pictures uint8/uint16 (C, H, W); series float32 (T, C), NaN where missing; text int32 ids (T,); what the
            modality says for other kinds.
        index: place in the source.
        group: number of the patient, speaker, device … it belongs to; -1 without one.
        time: (T,) float64 timestamps in seconds, or None.
        meta: single numbers that the modality needs later (a picture's aspect ratio before resizing).
        extra: further arrays that the modality needs (a graph's edges).
        parts: the samples of other modalities that this one ties together, by their name; absent where missing.
    """

    data: np.ndarray
    index: int
    group: int = -1
    time: np.ndarray | None = None
    meta: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    parts: Mapping[str, Sample] = field(default_factory=dict)

    def arrays(self) -> list[np.ndarray]:
        """Every array of the sample: what it weighs, and what must be alike for samples to be stacked."""
        own = [self.data, *([] if self.time is None else [self.time]), *(self.extra[key] for key in sorted(self.extra))]
        return own + [array for key in sorted(self.parts) for array in self.parts[key].arrays()]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays())


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sample that could not be read: quarantined, counted, listed."""

    index: int
    name: str
    reason: str


def entries(x: Tensor, places: Any) -> Tensor:
    """`x[places]`. CUDA has no indexing of uint16, whose bits are therefore taken as int16."""
    if x.dtype == torch.uint16:
        return x.view(torch.int16)[places].view(torch.uint16)
    return x[places]


@dataclass(frozen=True)
class Batch:
    """Several samples, collated; also a view of them, ready for an encoder.

    Attributes:
        data: (B, ...) the modality's tensor.
        index: (B,) int64 global sample indices.
        lengths: (B,) int64 number of valid steps, where samples differ in length.
        time: (B, T) float64 timestamps in seconds.
        group: (B,) int64, -1 without a group.
        draw: the randomness that belongs to these samples in this view (dropout inside the encoder uses it).
        extra: further (B, ...) tensors of the modality (crop boxes, offsets, aspect ratios, padded edges).
        parts: batches of the same B samples in other modalities, where a sample ties several together.
    """

    data: Tensor
    index: Tensor
    lengths: Tensor | None = None
    time: Tensor | None = None
    group: Tensor | None = None
    draw: Draw | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def with_(self, **changes: Any) -> Batch:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def steps(self) -> Tensor:
        """(B,) int64 number of valid steps of each sample."""
        return torch.full_like(self.index, self.data.shape[1]) if self.lengths is None else self.lengths

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch."""
        own = [value for value in (self.data, self.index, self.lengths, self.time, self.group) if value is not None]
        return [*own, *self.extra.values(), *(value for part in self.parts.values() for value in part.tensors())]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(value: Any) -> Any:
            if isinstance(value, Draw):
                return value.to(device)
            return value.to(device, non_blocking=non_blocking)

        return self._map(move)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The chosen samples of the batch (a slice, or an index tensor)."""
        return self._map(lambda value: entries(value, rows) if isinstance(value, Tensor) else value[rows])

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        """Every field that is there, the batches in `parts` included, changed the same way."""

        def of(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: change(item) for key, item in value.items()}
            return None if value is None else change(value)

        return Batch(**{f.name: of(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """Join batches whose `data` have equal trailing shapes: one forward pass for several views."""
        first = batches[0]
        joined: dict[str, Any] = {}
        for f in fields(first):
            values = [getattr(batch, f.name) for batch in batches]
            if f.name == "extra":
                joined[f.name] = {key: torch.cat([value[key] for value in values]) for key in first.extra}
            elif f.name == "parts":
                joined[f.name] = {key: Batch.cat([value[key] for value in values]) for key in first.parts}
            elif f.name == "lengths" and any(value is not None for value in values):
                joined[f.name] = torch.cat([batch.steps() for batch in batches])
            elif values[0] is None:
                joined[f.name] = None
            elif f.name == "draw":
                joined[f.name] = Draw.cat(values)
            else:
                joined[f.name] = torch.cat(values)
        return Batch(**joined)
