"""EMP: many crops of each sample agree with their mean, and the samples fill the space of codes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.coding_rate import coding_rate
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._views import of_case
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings, Widths


class EMPSettings(Settings):
    """Settings of EMP."""

    crops: Annotated[int, Field(ge=2)] = 4
    """views of each sample in every step"""
    views: Literal["contrast", "light", "local"] = "contrast"
    """how they are made; local: small crops, which take less time"""
    case: str = ""
    """column that says whose sample it is (a patient): every other view is then of another sample of the same case"""
    projector: Widths = (2048, 2048, 512)
    """widths of the projection head's layers"""
    similarity: NonNegativeFloat = 200.0
    """weight λ of the agreement of a sample's crops"""
    distortion: PositiveFloat = 0.2
    """ε² of the coding rate"""


class EMP(Objective):
    """Extreme multi-patch learning (Tong et al. 2023, "EMP-SSL", §3): much is learnt in few passes."""

    name = "emp"
    settings_class = EMPSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "emp-resnet": Recipe(
            source="Tong et al. 2023, §3, §4 and the authors' augmentation: 20 crops of a quarter of the area, batches "
            "of 100, LARS .3; there 91.5 % linear on CIFAR-10 within ten epochs, from the mean of many crops' features "
            "where a whole picture's are taken here. The authors' crops are squares, their trust coefficient is .005, "
            "their momentum Nesterov's; here crops are 3:4 to 4:3, it is .02, and momentum is plain",
            settings={"crops": 20, "projector": (4096, 4096, 1024)},
            # per 256 samples
            training={"optimizer": "lars", "learning_rate": 0.77, "weight_decay": 1e-4, "batch_size": 100},
            options={"augment": "V", "crop_min": 0.25, "crop_max": 0.25} | {"saturation": 0.4, "hue": 0.2, "blur": 0.1},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: EMPSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.projector = mlp(encoder.dim, *self.settings.projector)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        seen = of_case(batch, own.case)
        views = [self.modality.view(seen[number % 2], draw.view(number), own.views) for number in range(own.crops)]
        h = self.encoder(Batch.cat(views)).pooled
        z = F.normalize(self.projector(h).float(), dim=1).unflatten(0, (own.crops, -1))  # (V, B, D)
        agreement = F.cosine_similarity(z, z.mean(dim=0, keepdim=True), dim=2).mean()
        rate = coding_rate(z, own.distortion).mean()
        first, second, *_ = h.detach().chunk(own.crops)
        logs = {"coding_rate": rate.detach(), "alignment": alignment(first, second)}
        return Step(own.similarity * (1 - agreement) - rate, first, logs)
