"""MoCo: a view finds the key of the other among a queue of keys, which a slowly following encoder made."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.contrastive import across_views
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._memory import Queue
from labelfree.objectives._teacher import cosine_between, follow, frozen_copy, undropped
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives._views import ViewSettings, halves, two_views, whose
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Share, Widths


class MoCoSettings(TemperatureSettings, ViewSettings):
    """Settings of MoCo."""

    temperature: PositiveFloat = 0.2
    """divides the cosine similarities, at the start"""
    queue: NonNegativeInt = 4096
    """keys of earlier batches that are remembered as negatives; 0: only those of the batch (v3)"""
    projector: Widths = (2048, 256)
    """widths of the projection head's layers"""
    predictor: tuple[PositiveInt, ...] = ()
    """widths of the predictor's hidden layers (v3); empty for no predictor"""
    head_norm: bool = False
    """batch normalisation in the heads (v3)"""
    teacher_momentum: Share = 0.99
    """share of itself that the teacher keeps each step, at the start"""
    teacher_momentum_end: Share = 0.999
    """the same at the end; it rises along a cosine"""


#: What v3 changes: a predictor, normalised heads, no queue.
V3 = {
    "queue": 0,
    "projector": (4096, 256),
    "predictor": (4096,),
    "head_norm": True,
    "teacher_momentum_end": 1.0,
}


class MoCo(Objective):
    """Momentum contrast (He et al. 2020, §3; Chen et al. 2020, v2; Chen et al. 2021, v3, §3). The keys of the batch are
    negatives of one another, beside those in the queue; a sample's own earlier keys are not, nor those of its `case`.
    The loss is symmetrised.
    """

    name = "moco"
    settings_class = MoCoSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 0.03}
    recipes = {
        "moco-resnet": Recipe(
            source="He et al. 2020, §3, as v2+ with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures; there 92.9 % linear on CIFAR-10 after 1000 epochs",
            settings={"queue": 32768},
            training={"optimizer": "sgd", "learning_rate": 0.3, "weight_decay": 1e-4, "warmup": 0.01},
            options={"augment": "W"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
        "mocov3": Recipe(
            source="Chen et al. 2021, MoCo v3, §3: a predictor, normalised heads, no queue; for larger batches. The "
            "heads are those of the authors' ResNet, also on a ViT",
            settings=V3,
        ),
        "mocov3-resnet": Recipe(
            source="Chen et al. 2021, MoCo v3, §3, with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures; there 93.1 % linear on CIFAR-10 after 1000 epochs",
            settings=V3,
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-6, "warmup": 0.01},
            options={"augment": "A"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: MoCoSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        width = own.projector[-1]
        projector = mlp(encoder.dim, *own.projector, norm=own.head_norm)
        # the authors' code ends v3's projector, and not its predictor, with a normalisation that has no weights
        self.projector = projector.append(nn.BatchNorm1d(width, affine=False)) if own.head_norm else projector
        self.predictor = mlp(width, *own.predictor, width, norm=own.head_norm) if own.predictor else nn.Identity()
        self.teacher_encoder = frozen_copy(encoder)
        self.teacher_projector = frozen_copy(self.projector)
        self.queue = Queue(own.queue, width)
        self.temperature = Temperature(own)
        self._keys: tuple[Tensor, Tensor] | None = None

    def loss(self, batch: Batch, draw: Draw) -> Step:
        views = two_views(self.modality, batch, draw, self.settings)
        h = self.encoder(views).pooled
        p, q = halves(self.predictor(self.projector(h)))
        with torch.no_grad():
            keys = self.teacher_projector(self.teacher_encoder(undropped(views)).pooled).float()
            s, t = halves(nn.functional.normalize(keys))
        own = whose(batch, self.case)
        others = (self.temperature.now, own, self.queue.rows, self.queue.owner)
        loss = (across_views(p, t, *others) + across_views(q, s, *others)) / 2
        self._keys = s, own
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})

    def after_step(self, progress: float) -> None:
        own = self.settings
        momentum = cosine_between(own.teacher_momentum, progress, own.teacher_momentum_end)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)
        self.temperature.move(progress)
        if own.queue and self._keys is not None:
            self.queue.push(*self._keys)
