"""Barlow Twins: a feature of one view goes with itself in the other, and with no other feature."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.barlow import redundancy
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class BarlowSettings(ViewSettings):
    """Settings of Barlow Twins."""

    projector: Widths = (2048, 2048, 2048)
    """widths of the projection head's layers"""
    redundancy: NonNegativeFloat = 0.0051
    """weight λ of the redundancy reduction term: correlations between different features"""
    loss_scale: PositiveFloat = 0.1
    """factor of the loss, which matters to sgd and lars"""


class Barlow(Objective):
    """Barlow Twins (Zbontar et al. 2021, "Self-Supervised Learning via Redundancy Reduction", §2): the views' features
    are correlated one to one; no negatives, no teacher.
    """

    name = "barlow"
    settings_class = BarlowSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "barlow-resnet": Recipe(
            source="Zbontar et al. 2021, §2, with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures; there 92.1 % linear on CIFAR-10 after 1000 epochs",
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-4, "warmup": 0.01},
            options={"augment": "A"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: BarlowSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = self.encoder(two_views(self.modality, batch, draw, self.settings)).pooled
        loss = self.settings.loss_scale * redundancy(*halves(self.projector(h)), self.settings.redundancy)
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})
