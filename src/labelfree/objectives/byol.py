"""BYOL: from one view, predict what a slowly following teacher makes of the other."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.regression import alignment, cosine_regression
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._teacher import cosine_between, follow, frozen_copy, undropped
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Share


class BYOLSettings(ViewSettings):
    """Settings of BYOL."""

    projector: tuple[PositiveInt, ...] = (4096, 256)
    """widths of the projection head's layers; empty for none"""
    predictor: tuple[PositiveInt, ...] = (4096,)
    """widths of the predictor's hidden layers"""
    teacher_momentum: Share = 0.99
    """share of itself that the teacher keeps each step, at the start"""
    teacher_momentum_end: Share = 1.0
    """the same at the end; it rises along a cosine"""


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020, §3): an online network with a predictor learns the projections of a
    target network, which is its moving average; there are no negatives.
    """

    name = "byol"
    settings_class = BYOLSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-5, "warmup": 0.03}

    recipes = {
        "bgrl": Recipe(
            source="Thakoor et al. 2022, BGRL, §2, appendix D: BYOL on nodes; edges are dropped and features blanked. "
            "There on PubMed's, CiteSeer's and Cora's words 79.6, 71.1 and 82.7 % linear, with layers of 512 and 256 "
            "and no batch normalisation in the predictor, which this one has",
            settings={"projector": (), "predictor": (512,), "teacher_momentum": 0.99},
            training={"learning_rate": 5e-4, "weight_decay": 1e-5, "batch_size": 256},
            options={"edge_drop": 0.4, "feature_mask": 0.3},
            modalities=("graph",),
            encoder="pyg:gcn",
        ),
        "byol-a": Recipe(
            source="Niizumi et al. 2021, BYOL-A, §3: crops of .95 s, mixed with up to 40 % of other recordings, "
            "stretched in time and bands; 64 bands, frames of 64 ms; there 92.2 % linear on Speech Commands. Both "
            "views are of one window of 1.43 s, there of .95 s of sound with silence around it. They are mixed after "
            "they are cut out, with others that do not change, and normalised by the training data; there before, with "
            "the latest inputs, and by the batch",
            settings={"projector": (4096, 256), "predictor": (4096,)}
            | {"teacher_momentum": 0.99, "teacher_momentum_end": 0.99},
            training={"learning_rate": 3e-4, "weight_decay": 0.0},
            # the window is what a crop sees at the highest speed, so that two crops of it hardly ever miss each other
            options={"frame": 64.0, "crop": 0.95, "window": 1.43}
            | {"mixup": 0.4, "speed": 1.5, "bands": 0.6, "gain": 0.0},
            modalities=("audio",),
        ),
        "byol-resnet": Recipe(
            source="Grill et al. 2020, §3, with the settings of solo-learn (da Costa et al. 2022) for small pictures; "
            "there 92.6 % linear on CIFAR-10 after 1000 epochs",
            training={"optimizer": "lars", "learning_rate": 1.0, "weight_decay": 1e-5, "warmup": 0.01},
            options={"augment": "A"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: BYOLSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        width = (encoder.dim, *own.projector)[-1]
        self.projector = mlp(encoder.dim, *own.projector) if own.projector else nn.Identity()
        self.predictor = mlp(width, *own.predictor, width)
        self.teacher_encoder = frozen_copy(encoder)
        self.teacher_projector = frozen_copy(self.projector)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        views = two_views(self.modality, batch, draw, self.settings)
        h = self.encoder(views).pooled
        p, q = halves(self.predictor(self.projector(h)))
        with torch.no_grad():
            s, t = halves(self.teacher_projector(self.teacher_encoder(undropped(views)).pooled))
        # Each view predicts the other's target (§3.1: the loss is symmetrised).
        loss = cosine_regression(p, t) + cosine_regression(q, s)
        first, second = halves(h.detach())
        return Step(loss, first, {"alignment": alignment(first, second)})

    def after_step(self, progress: float) -> None:
        own = self.settings
        momentum = cosine_between(own.teacher_momentum, progress, own.teacher_momentum_end)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)
