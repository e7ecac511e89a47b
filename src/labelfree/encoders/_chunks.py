"""Encoding a large batch in the memory of a small one (gradient caching: Gao et al. 2021, §3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from labelfree.data.batch import Batch

if TYPE_CHECKING:
    from labelfree.encoders.base import Features


def in_chunks(
    encoder: nn.Module, run: Callable[..., Features], batch: Batch, mask: Tensor | None, kept: Tensor | None, rows: int
) -> Features:
    """`run(batch, mask, kept)` with `rows` samples at a time.

    Only the features of all samples exist at once, so that a loss sees the whole batch: what lies between is computed
    again, chunk by chunk, in the backward pass. Batch normalisation inside the encoder is over the samples of a chunk,
    and its running statistics move once.
    """

    def again() -> tuple[Any, Any]:
        return nullcontext(), still(encoder)

    found = []
    for start in range(0, len(batch), rows):
        part = slice(start, start + rows)
        given = (batch[part], *(None if where is None else where[part] for where in (mask, kept)))
        learns = torch.is_grad_enabled()
        found.append(checkpoint(run, *given, use_reentrant=False, context_fn=again) if learns else run(*given))
    return _joined(found)


def _joined(parts: Sequence[Features]) -> Features:
    values: dict[str, Any] = {}
    for field in fields(parts[0]):
        some = [getattr(part, field.name) for part in parts]
        values[field.name] = None if some[0] is None else torch.cat(some)
    return type(parts[0])(**values)


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Running statistics of batch normalisation do not move inside."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, buffers in zip(layers, kept, strict=True):
                for name, value in buffers.items():
                    layer.get_buffer(name).copy_(value)
