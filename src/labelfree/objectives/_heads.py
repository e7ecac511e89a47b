"""What several objectives put on the encoder while it learns; none of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Features
from labelfree.errors import Refusal
from labelfree.losses.vocabulary import vocabulary_loss
from labelfree.modalities.base import Modality
from labelfree.needs import Need

#: Numbers of a prediction that are held at once; 128 MB in float32.
MOST = 1 << 25


def mlp(*sizes: int, norm: bool = True) -> nn.Sequential:
    """Linear layers of `sizes` (input first), each but the last followed by batch normalisation and ReLU.

    Args:
        norm: whether to normalise; biases before a normalisation would do nothing and are left out.
    """
    layers: list[nn.Module] = []
    for width, wider in pairwise(sizes[:-1]):
        layers.append(nn.Linear(width, wider, bias=not norm))
        layers += [nn.BatchNorm1d(wider), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def token_head(
    dim: int, layers: int, out: int, table: nn.Parameter | None = None, bias: Tensor | None = None
) -> nn.Sequential:
    """Prediction for one token: `layers` × (linear, GELU, layer norm), as BERT's, then linear to `out`.

    Args:
        table: (out, dim) vectors of the ids that are predicted, shared with the encoder (Press & Wolf 2017): each step
            then moves the vectors of all ids, not only of those it has seen. Ignored where it has another shape.
        bias: (out,) of the last layer at the start. Log frequencies of ids spare the network learning them first
            (Meister et al. 2023, "A Natural Bias for Language Generation Models").
    """
    hidden = [part for _ in range(layers) for part in (nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))]
    last = nn.Linear(dim, out)
    if table is not None and table.shape == last.weight.shape:
        last.weight = table
    if bias is not None:
        last.bias.data.copy_(bias)
    return nn.Sequential(*hidden, last)


def valid_tokens(features: Features) -> Tensor:
    """(B, N) bool, true where a token is not padding."""
    if features.valid is not None:
        return features.valid
    assert features.tokens is not None
    return torch.ones(features.tokens.shape[:2], dtype=torch.bool, device=features.tokens.device)


def later_moments(tokens: int, moment: int) -> int:
    """How many moments of `moment` tokens come after the first. Raises Refusal where none does."""
    if tokens < 2 * moment:
        raise Refusal("Samples have one token: nothing comes after it.", "Set a smaller patch, or longer samples.")
    return tokens // moment - 1


def token_error(
    head: Callable[[Tensor], Tensor], modality: Modality, tokens: Tensor, target: Tensor, counted: Tensor
) -> Tensor:
    """Mean of the modality's loss of what `head` predicts from tokens (B, N, D), over the `counted` (B, M) ones of its
    predictions (B, M, target_dim) in the global batch: this process's part.

    A whole vocabulary for every token of a batch would fill the memory. Where a linear layer gives the logits of ids,
    loss and gradient are made in one sweep; other large predictions are made for some samples at a time, and made again
    in the backward pass.
    """
    if Need.IDS in modality.offers and isinstance(head, nn.Sequential):
        last: Any = head[-1]
        flat = head[:-1](tokens).flatten(0, 1)
        return vocabulary_loss(flat, last.weight, last.bias, target.flatten(), counted.flatten())

    def part(tokens: Tensor, target: Tensor) -> Tensor:
        return modality.token_loss(head(tokens).float(), target)

    rows = max(1, MOST // (target.shape[1] * modality.target_dim))
    if rows >= len(tokens):
        return weighted_mean(part(tokens, target), counted)
    pieces = zip(tokens.split(rows), target.split(rows), strict=True)
    return weighted_mean(torch.cat([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]), counted)
