"""Replaced-token detection: drawing what replaces a token."""

from __future__ import annotations

import torch
from torch import Tensor

from labelfree.losses.precision import full_precision


@full_precision
def draw_ids(logits: Tensor, uniform: Tensor) -> Tensor:
    """(..., V) logits and (...) uniform numbers in [0, 1) → (...) int64 ids, drawn from softmax(logits).

    One number for each is enough: the id is where it falls among the summed probabilities.
    """
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    # The last sum may fall short of 1 by a rounding error.
    place = torch.searchsorted(below, (uniform * below[..., -1]).unsqueeze(-1), right=True)
    return place.squeeze(-1).clamp_max(logits.shape[-1] - 1)
