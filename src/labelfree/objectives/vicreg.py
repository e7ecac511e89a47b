"""VICReg: two views agree, and the features neither shrink nor repeat each other."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.regression import alignment
from labelfree.losses.vicreg import vicreg_terms
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class VICRegSettings(ViewSettings):
    """Settings of VICReg."""

    expander: Widths = (2048, 2048, 2048)
    """widths of the expander's layers"""
    invariance: NonNegativeFloat = 25.0
    """weight λ of the agreement of the views"""
    variance: NonNegativeFloat = 25.0
    """weight μ of the hinge that keeps every dimension's standard deviation at one"""
    covariance: NonNegativeFloat = 1.0
    """weight ν of the decorrelation of the dimensions"""


class VICReg(Objective):
    """Variance-invariance-covariance regularisation (Bardes et al. 2022, "VICReg", §4): no negatives, no teacher."""

    name = "vicreg"
    settings_class = VICRegSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}

    recipes = {
        "vicreg-resnet": Recipe(
            source="Bardes et al. 2022, §4, with the settings of solo-learn (da Costa et al. 2022) for small pictures; "
            "there 92.1 % linear on CIFAR-10 after 1000 epochs. There 25 weighs the sum of the views' variance terms, "
            "here 50 their mean",
            settings={"variance": 50.0},
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-4, "warmup": 0.01},
            options={"augment": "V"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: VICRegSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.expander = mlp(encoder.dim, *self.settings.expander)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        h = self.encoder(two_views(self.modality, batch, draw, own)).pooled
        terms = vicreg_terms(*halves(self.expander(h)))
        loss = own.invariance * terms.invariance + own.variance * terms.variance + own.covariance * terms.covariance
        first, second = halves(h.detach())
        logs = {name: term.detach() for name, term in terms._asdict().items()}
        return Step(loss, first, {**logs, "alignment": alignment(first, second)})
