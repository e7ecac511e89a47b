"""Towers: an encoder for each side of a pair, into one space."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree import registry
from labelfree.data.batch import Batch
from labelfree.encoders.base import Encoder, Features
from labelfree.encoders.weights import load_weights
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need


class Towers(Encoder):
    """`towers:SPEC+SPEC`: a network for each side (as `towers:timm:resnet18+transformer:nano`), and a linear projection
    of each into the space that the sides share (Radford et al. 2021, CLIP, §2.3).

    `pooled` is the joint embedding (B, S·W): the unit vectors of the sides beside each other, zeros where a row lacks
    one. `pooled.unflatten(1, (S, W))` gives the sides apart.

    Args:
        towers: an encoder for each side, in the order of the sides.
        width: W.
    """

    name = "towers"
    needs = frozenset({Need.PAIR})

    def __init__(self, towers: Mapping[str, Encoder], width: int) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.project = nn.ModuleDict({side: nn.Linear(t.dim, width, bias=False) for side, t in towers.items()})
        self.dim = width * len(towers)

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Towers:
        if Need.PAIR not in modality.offers:
            raise Refusal(f"Towers are for pairs, not for {modality.name}.", "Name the encoder of one side.")
        if causal:
            raise Refusal("Towers cannot be kept from seeing the future.", "Pretrain the sides one by one.")
        specs = _specs(variant, len(modality.sides))
        towers = {
            side: registry.build_encoder(spec, own)
            for (side, own), spec in zip(modality.sides.items(), specs, strict=True)
        }
        for side, (_, folder) in modality.runs.items():
            load_weights(towers[side], folder)
        built = cls(towers, modality.settings.width)
        if any(tower.spec for tower in towers.values()):
            built.spec = "towers:" + json.dumps(
                [t.spec or spec for t, spec in zip(towers.values(), specs, strict=True)]
            )
        return built

    @classmethod
    def variants(cls) -> list[str]:
        return ["timm:resnet18+transformer:nano", "nano+nano"]

    @classmethod
    def options(cls, variant: str) -> Mapping[str, Any]:
        """Settings of the sides that their networks bring with them."""
        found = {}
        for spec in _specs(variant, 0):
            for key, value in registry.encoder_options(spec).items():
                kind = next(iter(registry.encoders()[spec.partition(":")[0]].modalities))
                found[f"{kind}.{key}"] = value
        return {"sides": found} if found else {}

    @classmethod
    def lasting(cls, variant: str) -> str:
        specs = _specs(variant, 0)
        lasting = [registry.lasting(spec) for spec in specs]
        return variant if lasting == specs else json.dumps(lasting)

    def forward(self, batch: Batch, mask: Tensor | None = None, kept: Tensor | None = None) -> Features:
        found = []
        for number, (side, tower) in enumerate(self.towers.items()):
            there = batch.data[:, number, None]
            if side in batch.parts:
                unit = F.normalize(self.project[side](tower(batch.parts[side]).pooled).float(), dim=1)
                found.append(unit * there)
            else:
                found.append(torch.zeros(len(batch), self.dim // len(self.towers), device=there.device))
        return Features(torch.cat(found, dim=1))

    def rescale(self) -> None:
        for tower in self.towers.values():
            tower.rescale()  # type: ignore[operator]

    def layers(self) -> list[list[nn.Parameter]]:
        """Those of the towers counted from their ends; the projections last."""
        reversed_layers = zip_longest(*(tower.layers()[::-1] for tower in self.towers.values()), fillvalue=[])  # type: ignore[operator]
        joined = [[p for layer in layers for p in layer] for layers in reversed_layers]
        return [*joined[::-1], list(self.project.parameters())]


def _specs(variant: str, sides: int) -> list[str]:
    """The encoder of each side. Raises LabelfreeError where they are not as many as the sides (unless 0)."""
    specs = json.loads(variant) if variant.startswith("[") else [spec.strip() for spec in variant.split("+")]
    if sides and len(specs) != sides:
        raise LabelfreeError(
            f"'towers:{variant}' names {len(specs)} networks for {sides} sides.",
            "Name one a side, joined by +: towers:timm:resnet18+transformer:nano.",
        )
    return list(specs)
