"""SwAV: from one view, predict the code of the other, a soft assignment to prototypes in equal shares of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import world_size
from labelfree.encoders.base import Encoder
from labelfree.losses.distillation import distinct, sinkhorn, swapped
from labelfree.losses.regression import alignment
from labelfree.losses.rows import similarities
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._memory import Queue
from labelfree.objectives._prototypes import ONE_LABEL
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives._views import CropSettings, halves, local_crops, two_views
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Share, Widths


class SwAVSettings(TemperatureSettings, CropSettings):
    """Settings of SwAV."""

    projector: Widths = (2048, 128)
    """widths of the projection head's layers"""
    prototypes: PositiveInt = 512
    """prototypes K, one a cluster"""
    temperature: PositiveFloat = 0.1
    """divides the cosines of views and prototypes, at the start"""
    sharpness: PositiveFloat = 0.05
    """weight ε of the entropy in Sinkhorn–Knopp; small values make codes hard"""
    iterations: PositiveInt = 3
    """iterations of Sinkhorn–Knopp in each step"""
    queue: NonNegativeInt = 0
    """projections of earlier batches that are assigned together with each small batch; 0 for none"""
    queue_start: Share = 0.05
    """share of the training after which the queue is used"""
    frozen_prototypes: Share = 0.002
    """share of the training in which the prototypes stay as they are"""


class SwAV(Objective):
    """Swapping assignments between views (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting
    Cluster Assignments", §3): codes come from the two views, every other view and crop predicts them.
    """

    name = "swav"
    settings_class = SwAVSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-5, "warmup": 0.03}
    recipes = {
        "swav-resnet": Recipe(
            source="Caron et al. 2020, §3, with the settings of solo-learn (da Costa et al. 2022) for small pictures; "
            "there 89.2 % linear on CIFAR-10 after 1000 epochs",
            settings={"prototypes": 3000, "queue": 3840},
            training={"optimizer": "lars", "learning_rate": 0.6, "weight_decay": 1e-6, "warmup": 0.01},
            options={"augment": "S"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
        "seer": Recipe(
            source="Goyal et al. 2021, SEER, §3: SwAV with small crops (.05 to .14 of a picture, large ones .14 or "
            "more) and ten Sinkhorn iterations on a RegNet, over pictures that nobody chose; there RegNetY-256GF, "
            "16,000 prototypes and a billion pictures",
            settings={"local_crops": 4, "iterations": 10, "prototypes": 3000, "projector": (2048, 2048, 256)},
            training={"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-5},
            options={"augment": "S", "crop_min": 0.14, "local_crop_max": 0.14},
            modalities=("image",),
            encoder="timm:regnety_004",
        ),
    }

    vital = ONE_LABEL
    progress: Tensor

    def __init__(self, encoder: Encoder, modality: Modality, settings: SwAVSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        width = own.projector[-1]
        self.projector = mlp(encoder.dim, *own.projector)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(own.prototypes, width), dim=1))
        self.queue = Queue(own.queue, 2 * width)
        self.temperature = Temperature(own)
        self.register_buffer("progress", torch.zeros(()))
        self._seen: tuple[Tensor, Tensor] | None = None

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        h = self.encoder(two_views(self.modality, batch, draw, own)).pooled
        small = local_crops(self.modality, batch, draw, own.local_crops)
        every = h if small is None else torch.cat([h, self.encoder(small).pooled])
        projected = F.normalize(self.projector(every).float(), dim=1)  # views and crops are normalised together
        z, crops = projected[: len(h)], projected[len(h) :]
        prototypes = F.normalize(self.prototypes, dim=1)
        codes = self._codes(halves(z), prototypes.detach())
        prototypes = torch.where(self.progress >= own.frozen_prototypes, prototypes, prototypes.detach())
        tau = self.temperature.now
        of_crops = None if small is None else similarities(crops, prototypes) / tau
        loss = swapped(codes, similarities(z, prototypes) / tau, of_crops)
        self._seen = torch.cat(halves(z), dim=1).detach(), batch.index
        first, second = halves(h.detach())
        logs = {"alignment": alignment(first, second), "labels": distinct(codes)}
        return Step(loss, first, logs)

    def _codes(self, views: tuple[Tensor, Tensor], prototypes: Tensor) -> Tensor:
        """(2B, K) the codes of each view: soft assignments in equal shares of batch and queue (§3.1, eq. 3–5)."""
        own = self.settings
        if not own.queue:
            scores = [similarities(view.detach(), prototypes) for view in views]
            return torch.cat([sinkhorn(one, own.sharpness, own.iterations) for one in scores])
        # Every process has the whole queue, and answers for its part.
        there = (self.queue.owner >= 0) & (self.progress >= own.queue_start)
        weight = torch.cat([torch.ones(len(views[0]), device=prototypes.device), there / world_size()])
        older = self.queue.rows.chunk(2, dim=1)
        both = [torch.cat([view.detach(), old]) for view, old in zip(views, older, strict=True)]
        scores = [similarities(one, prototypes) for one in both]
        return torch.cat([sinkhorn(one, own.sharpness, own.iterations, weight)[: len(views[0])] for one in scores])

    def after_step(self, progress: float) -> None:
        self.progress.fill_(progress)
        self.temperature.move(progress)
        if self.settings.queue and self._seen is not None:
            self.queue.push(*self._seen)
