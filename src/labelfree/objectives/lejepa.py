"""LeJEPA: views of a sample meet at their centre, and all embeddings together look like a standard normal."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.regression import alignment
from labelfree.losses.sigreg import sigreg
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import CropSettings, halves, local_crops, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class LeJEPASettings(CropSettings):
    """Settings of LeJEPA."""

    projector: Widths = (2048, 128)
    """widths of the projection head's layers"""
    trade_off: Annotated[float, Field(ge=0, le=1)] = 0.05
    """weight λ of SIGReg (the distance to a standard normal), against 1 − λ of the views' distance from their centre"""
    directions: PositiveInt = 256
    """random directions, drawn anew each step, along which the distribution is tested"""


class LeJEPA(Objective):
    """Latent-Euclidean JEPA (Balestriero & LeCun 2025, §5): no teacher, no predictor, no stopped gradient; one weight.
    Views and small crops are drawn to the centre of the two views.
    """

    name = "lejepa"
    settings_class = LeJEPASettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 5e-4, "warmup": 0.03}
    recipes = {
        "lejepa-resnet": Recipe(
            source="Balestriero & LeCun 2025, §5, with the settings of eb_jepa for CIFAR-10, whose weight of 10 on "
            "a mean is .01 here on a sum over batches of 256; there 91.0 % linear after 300 epochs",
            settings={"trade_off": 0.01, "projector": (2048, 128)},
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-4, "warmup": 0.01},
            options={"augment": "V"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
        "lejepa-vit": Recipe(
            source="Balestriero & LeCun 2025, §5 and the authors' list of settings: six small crops (.05 to .3 of a "
            "picture, large ones .3 or more), AdamW 5e-4, weight decay .05",
            settings={"local_crops": 6, "trade_off": 0.05, "projector": (2048, 2048, 64), "directions": 1024},
            training={"learning_rate": 5e-4, "weight_decay": 0.05},
            options={"crop_min": 0.3, "local_crop_max": 0.3},
            modalities=("image",),
            encoder="transformer:small",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: LeJEPASettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        h = self.encoder(two_views(self.modality, batch, draw, own)).pooled
        small = local_crops(self.modality, batch, draw, own.local_crops)
        every = h if small is None else torch.cat([h, self.encoder(small).pooled])
        z = self.projector(every).float().unflatten(0, (2 + own.local_crops, -1))  # (V, B, D)
        together = (z - z[:2].mean(dim=0)).square().mean()
        normal = sigreg(z, self._directions(draw))
        first, second = halves(h.detach())
        logs = {"invariance": together.detach(), "sigreg": normal.detach(), "alignment": alignment(first, second)}
        return Step((1 - own.trade_off) * together + own.trade_off * normal, first, logs)

    def _directions(self, draw: Draw) -> Tensor:
        """(D, M) unit vectors, the same on every process."""
        return F.normalize(
            draw.shared.normal("directions", self.settings.projector[-1], self.settings.directions)[0], dim=0
        )
