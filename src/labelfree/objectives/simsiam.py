"""SimSiam: from one view, predict the other; that no gradient flows into the target is what keeps features apart."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.regression import alignment, cosine_regression
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class SimSiamSettings(ViewSettings):
    """Settings of SimSiam."""

    projector: Widths = (2048, 2048, 2048)
    """widths of the projection head's layers"""
    predictor: tuple[PositiveInt, ...] = (512,)
    """widths of the predictor's hidden layers; a bottleneck does best"""


class SimSiam(Objective):
    """Simple Siamese learning (Chen & He 2021, "Exploring Simple Siamese Representation Learning", §3): BYOL without a
    teacher; no negatives, no queue.
    """

    name = "simsiam"
    settings_class = SimSiamSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "simsiam-resnet": Recipe(
            source="Chen & He 2021, §3, with the settings of solo-learn (da Costa et al. 2022) for small pictures; "
            "there 90.5 % linear on CIFAR-10 after 1000 epochs. The predictor's rate falls with all others here",
            training={"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 1e-5, "warmup": 0.01},
            options={"augment": "W"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: SimSiamSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        width = self.settings.projector[-1]
        # The output is normalised, too (§3, baseline settings).
        self.projector = nn.Sequential(mlp(encoder.dim, *self.settings.projector), nn.BatchNorm1d(width, affine=False))
        self.predictor = mlp(width, *self.settings.predictor, width)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = self.encoder(two_views(self.modality, batch, draw, self.settings)).pooled
        z = self.projector(h)
        p, q = halves(self.predictor(z))
        s, t = halves(z.detach())
        # 1 − the mean cosine: eq. 2, moved so that it ends at 0
        loss = (cosine_regression(p, t) + cosine_regression(q, s)) / 4
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})
