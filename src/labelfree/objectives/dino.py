"""DINO: a student gives small and large crops the soft labels that a teacher gives large ones."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.distillation import (
    centred,
    distinct,
    entropy,
    koleo,
    mean_over_batch,
    sinkhorn,
    swapped,
)
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._prototypes import ONE_LABEL, PrototypeHead
from labelfree.objectives._teacher import cosine_between, follow, frozen_copy, undropped
from labelfree.objectives._views import CropSettings, halves, local_crops, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Share, Widths


class DINOSettings(CropSettings):
    """Settings of DINO."""

    projector: Widths = (1024, 1024, 256)
    """widths of the head's layers; the last is the bottleneck's"""
    prototypes: PositiveInt = 4096
    """prototypes K, to which soft labels assign a sample"""
    student_temperature: PositiveFloat = 0.1
    """divides the student's cosines"""
    teacher_temperature: PositiveFloat = 0.07
    """divides the teacher's cosines, after the warm-up"""
    teacher_temperature_start: PositiveFloat = 0.04
    """the same at the start"""
    temperature_warmup: Share = 0.1
    """share of the training in which the teacher's temperature rises"""
    teacher_momentum: Share = 0.996
    """share of itself that the teacher keeps each step, at the start"""
    teacher_momentum_end: Share = 1.0
    """the same at the end; it rises along a cosine"""
    centring: Literal["centre", "sinkhorn"] = "centre"
    """what keeps the teacher from giving all samples one label: a centre, or Sinkhorn–Knopp's equal shares (DINOv2)"""
    centre_momentum: Share = 0.9
    """share of itself that the centre, a running mean of the teacher's cosines, keeps each step"""
    frozen_prototypes: Share = 0.01
    """share of the training in which the prototypes stay as they are"""
    koleo: NonNegativeFloat = 0.0
    """weight of KoLeo, which spreads features over the sphere (DINOv2: 0.1)"""


class DINO(Objective):
    """Self-distillation with no labels (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
    Transformers", §3.1, algorithm 1): the teacher is the student's moving average and sees the two large views; the
    student sees all. A sample's vector is the encoder's own: in `dino-vit`, as in the paper, a class token. What is
    kept is the student; the paper, whose teacher is ahead of it all through a long training, keeps the teacher.
    """

    name = "dino"
    settings_class = DINOSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.04, "warmup": 0.1, "clip": 3.0}
    vital = ONE_LABEL
    centre: Tensor
    progress: Tensor
    recipes = {
        "dino-resnet": Recipe(
            source="Caron et al. 2021, §3.1, with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures; there 89.5 % linear on CIFAR-10 after 1000 epochs",
            settings={"projector": (2048, 2048, 256), "prototypes": 4096, "teacher_momentum": 0.9995}
            | {"frozen_prototypes": 0.001, "temperature_warmup": 0.0},
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-6, "warmup": 0.01, "clip": 0.0},
            options={"augment": "A"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
        "dino-vit": Recipe(
            source="Caron et al. 2021, §3.1, §4.1: ViT, eight small crops of at most .4 of a picture, large ones of at "
            "least as much, AdamW with weight decay .04 rising to .4, a teacher of .996, for batches of about a "
            "thousand (.9995 for 256). There pictures are blurred too, and gradients clipped tensor by tensor",
            settings={"local_crops": 8, "projector": (2048, 2048, 256), "prototypes": 65536},
            training={"learning_rate": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4},
            options={"class_token": True, "crop_min": 0.4},
            modalities=("image",),
            encoder="transformer:small",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: DINOSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        self.head = PrototypeHead(encoder.dim, own.projector, own.prototypes)
        self.teacher_encoder, self.teacher_head = frozen_copy(encoder), frozen_copy(self.head)
        self.register_buffer("centre", torch.zeros(own.prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self._next_centre: Tensor | None = None

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        views = two_views(self.modality, batch, draw, own)
        h = self.encoder(views).pooled
        with torch.no_grad():
            cosines = self.teacher_head(self.teacher_encoder(undropped(views)).pooled)
        labels = self._assigned(cosines)
        loss = self._agreement(labels, self._cosines(h), self._of_crops(batch, draw))
        first, second = halves(h)
        logs = {"alignment": alignment(first, second), **label_logs(labels)}
        if own.koleo:
            loss = loss + own.koleo * (koleo(first) + koleo(second))
        return Step(loss, first.detach(), logs)

    def _cosines(self, features: Tensor, head: nn.Module | None = None) -> Tensor:
        """The student's, of its head for samples where no other is given."""
        return (self.head if head is None else head)(
            features, (self.progress >= self.settings.frozen_prototypes).float()
        )

    def _of_crops(self, batch: Batch, draw: Draw) -> Tensor | None:
        """(L·B, K) the student's cosines of the small crops."""
        small = local_crops(self.modality, batch, draw, self.settings.local_crops)
        if small is None:
            return None
        return self._cosines(self.encoder(small).pooled)

    def _agreement(self, labels: Tensor, cosines: Tensor, crops: Tensor | None) -> Tensor:
        """Mean cross-entropy of the teacher's view of a sample and every other view of the student's (eq. 3)."""
        temperature = self.settings.student_temperature
        return swapped(labels, cosines / temperature, None if crops is None else crops / temperature)

    def _assigned(self, cosines: Tensor) -> Tensor:
        """(2B, K) the teacher's cosines → its soft labels, for each view by itself."""
        if self.settings.centring == "sinkhorn":
            return torch.cat([sinkhorn(view, self.temperature) for view in halves(cosines)])
        labels, self._next_centre = self._centred(cosines, self.centre)
        return labels

    def _centred(self, cosines: Tensor, centre: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K) soft labels by the running mean (K,), and this mean after the step."""
        mean = mean_over_batch(cosines, weight)
        mean = torch.where(mean.any(), mean, centre)  # where nothing weighs it is zero, and says nothing
        # The first batch's own is where the centre starts: from zero it would take its time, in which one label is the
        # easiest answer to everything.
        centre = torch.where(centre.any(), centre, mean)
        return centred(cosines, centre, self.temperature), centre.lerp(mean, 1 - self.settings.centre_momentum)

    @property
    def temperature(self) -> Tensor:
        """The teacher's, which rises at the start of the training."""
        own = self.settings
        if not own.temperature_warmup:
            return torch.full_like(self.progress, own.teacher_temperature)
        share = (self.progress / own.temperature_warmup).clamp(max=1.0)
        return own.teacher_temperature_start + share * (own.teacher_temperature - own.teacher_temperature_start)

    def _momentum(self, progress: float) -> float:
        return cosine_between(self.settings.teacher_momentum, progress, self.settings.teacher_momentum_end)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        momentum = self._momentum(progress)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)
        if self._next_centre is not None:
            self.centre.copy_(self._next_centre)
        self.progress.fill_(progress)


def label_logs(labels: Tensor) -> dict[str, Tensor]:
    """Of soft labels (B, K): the mean entropy, as a share of what it is where all K are alike, and how many differ."""
    return {"teacher_entropy": entropy(labels).mean() / math.log(labels.shape[1]), "labels": distinct(labels)}
