"""Layers over all columns of a table at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features, Hide
from labelfree.errors import LabelfreeError, nearest
from labelfree.modalities.base import Modality
from labelfree.modalities.table.fields import Fields, TableStem
from labelfree.needs import Need

if TYPE_CHECKING:
    from labelfree.modalities.table import Table


@dataclass(frozen=True)
class Shape:
    """Width and number of the layers."""

    dim: int
    depth: int


#: `base` is SCARF's (Bahri et al. 2022, §4).
SHAPES = {"tiny": Shape(64, 3), "base": Shape(256, 4), "large": Shape(512, 6)}


class MLP(Encoder):
    """`mlp:tiny|base|large`: linear layers and ReLU over all columns of a table at once.

    A hidden value counts as missing, with a vector of its own. The token of a field is the row's vector, scaled and
    shifted by what is learnt for that field, so that one linear head on tokens is a linear head for each field.
    """

    name = "mlp"
    can = frozenset({Need.TOKENS, Need.MASK})
    hides: tuple[Hide, ...] = ("replace",)
    modalities = frozenset({"table"})

    def __init__(self, fields: Fields, shape: Shape) -> None:
        super().__init__()
        self.dim = shape.dim
        self.stem = TableStem(fields, shape.dim)
        self.hidden = nn.Parameter(torch.zeros(len(fields), shape.dim))
        self.layers_above = nn.ModuleList(nn.Linear(shape.dim, shape.dim) for _ in range(shape.depth - 1))
        for layer in self.layers_above:
            nn.init.kaiming_normal_(cast(nn.Linear, layer).weight, nonlinearity="relu")
        self.field_scale = nn.Parameter(torch.ones(len(fields), shape.dim))
        self.field_shift = nn.Parameter(torch.zeros(len(fields), shape.dim))

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        variant = variant or "base"
        if variant not in SHAPES:
            raise LabelfreeError(
                f"There is no mlp size '{variant}': there are {', '.join(SHAPES)}.", nearest(variant, SHAPES)
            )
        if causal:
            raise LabelfreeError("An mlp sees all columns at once.", "Use transformer:nano.")
        return cls(cast("Table", modality).fields, SHAPES[variant])

    @classmethod
    def variants(cls) -> list[str]:
        return list(SHAPES)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        x = self.stem.total(batch.data, mask)
        if mask is not None:
            x = x + mask.to(x.dtype) @ self.hidden
        for layer in self.layers_above:
            x = layer(torch.relu(x))
        return Features(pooled=x, tokens=torch.addcmul(self.field_shift, x[:, None], self.field_scale))

    def layers(self) -> list[list[nn.Parameter]]:
        first = [*self.stem.parameters(), self.hidden]
        last = [self.field_scale, self.field_shift]
        return [first, *(list(layer.parameters()) for layer in self.layers_above[:-1]),
                [*self.layers_above[-1].parameters(), *last]]  # fmt: skip
