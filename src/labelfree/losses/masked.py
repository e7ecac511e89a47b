"""What masked modelling shares: finding the hidden tokens without asking the device how many there are.

Legend: B samples, N tokens, K hidden tokens a sample, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: How predicted values are compared with true ones.
TargetError = Literal["squared", "absolute"]


def hidden_positions(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where tokens are hidden, as a rectangle.

    Boolean indexing would stop the host until the device has counted; here the count is known beforehand and samples
    that hide fewer (short texts) are filled up with visible tokens of weight zero.

    Args:
        mask: (B, N) bool, true where hidden.
        count: K, at least the largest number of hidden tokens in a sample.

    Returns:
        (B, K) positions in rising order, hidden ones first; (B, K) bool, true where the position is hidden.
    """
    positions = (~mask).byte().argsort(dim=1, stable=True)[:, :count]
    return positions, mask.gather(1, positions)


def visible_positions(mask: Tensor, hidden: int) -> Tensor:
    """(B, N) bool, true for exactly `hidden` tokens of each row → (B, N - hidden) places of the others, rising."""
    return hidden_positions(~mask, mask.shape[1] - hidden)[0]


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """(B, N, ...), (B, K) → (B, K, ...): the tokens at the positions."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], positions]


def differ(a: Tensor, b: Tensor) -> Tensor:
    """(B, N, ...), (B, N, ...) → (B, N) bool, true where a token differs; missing (NaN) equals missing."""
    unlike = (a != b) & ~(a.isnan() & b.isnan())
    return unlike.flatten(2).any(dim=2) if unlike.ndim > 2 else unlike


def fill_in(visible: Tensor, mask: Tensor, filler: Tensor) -> Tensor:
    """Put visible tokens (B, V, D) back into their places among N, `filler` (D,) where tokens were dropped: (B, N, D).

    Args:
        mask: (B, N) bool, true where dropped; every row keeps exactly V.
    """
    # The i-th visible token of a row stands where i others came before it.
    place = ((~mask).cumsum(dim=1) - 1).clamp_min(0)
    return torch.where(mask[..., None], filler.to(visible.dtype), take(visible, place))


def value_error(prediction: Tensor, target: Tensor, error: TargetError = "squared") -> Tensor:
    """(B, N, D), (B, N, D) → (B, N): mean squared, or absolute, error of each token over the values that are not
    missing (NaN).
    """
    known = ~target.isnan()
    difference = (prediction - target.nan_to_num()) * known
    errors = difference.square() if error == "squared" else difference.abs()
    return errors.sum(dim=-1) / known.sum(dim=-1).clamp_min(1)
