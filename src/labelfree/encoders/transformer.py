"""The shared transformer, by size; each modality gives it a stem (see `Modality.transformer`)."""

from __future__ import annotations

from dataclasses import dataclass

from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError, nearest
from labelfree.modalities.base import Modality


@dataclass(frozen=True)
class Size:
    """Width, blocks and attention heads of a trunk; tiny, small and base are those of ViT (Touvron et al. 2021)."""

    dim: int
    depth: int
    heads: int


SIZES = {
    "pico": Size(64, 2, 2),
    "nano": Size(128, 4, 4),
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
}


class Transformer(Encoder):
    """`transformer:pico|nano|tiny|small|base`: resolved by the modality, which knows its stem."""

    name = "transformer"

    @classmethod
    def build(cls, variant: str, modality: Modality, causal: bool = False) -> Encoder:
        if variant not in SIZES:
            raise LabelfreeError(
                f"There is no transformer size '{variant}': there are {', '.join(SIZES)}.", nearest(variant, SIZES)
            )
        return modality.transformer(variant, causal)

    @classmethod
    def variants(cls) -> list[str]:
        return list(SIZES)
