"""NNCLR: the positive of a view is the nearest neighbour of the other, among samples seen before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.losses.contrastive import across_views
from labelfree.losses.regression import alignment
from labelfree.losses.rows import by_rows, similarities
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._memory import Queue
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives._views import ViewSettings, halves, two_views, whose
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class NNCLRSettings(TemperatureSettings, ViewSettings):
    """Settings of NNCLR."""

    temperature: PositiveFloat = 0.2
    """divides the cosine similarities, at the start"""
    queue: PositiveInt = 4096
    """projections of earlier batches among which neighbours are looked for (the support set)"""
    projector: Widths = (2048, 2048, 256)
    """widths of the projection head's layers"""
    predictor: tuple[PositiveInt, ...] = (4096,)
    """widths of the predictor's hidden layers"""


class NNCLR(Objective):
    """Nearest-neighbour contrast (Dwibedi et al. 2021, "With a Little Help from My Friends", §3.2): positives are more
    than views of one sample. A sample's own earlier projections are none of its neighbours.
    """

    name = "nnclr"
    settings_class = NNCLRSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-5, "warmup": 0.03}
    recipes = {
        "nnclr-resnet": Recipe(
            source="Dwibedi et al. 2021, §3.2, with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures; there 91.9 % linear on CIFAR-10 after 1000 epochs",
            settings={"queue": 65536},
            training={"optimizer": "lars", "learning_rate": 0.4, "weight_decay": 1e-5, "warmup": 0.01},
            options={"augment": "A"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: NNCLRSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        width = own.projector[-1]
        self.projector = nn.Sequential(mlp(encoder.dim, *own.projector), nn.BatchNorm1d(width))
        self.predictor = mlp(width, *own.predictor, width)
        self.queue = Queue(own.queue, width)
        self.temperature = Temperature(own)
        self._seen: tuple[Tensor, Tensor] | None = None

    def loss(self, batch: Batch, draw: Draw) -> Step:
        h = self.encoder(two_views(self.modality, batch, draw, self.settings)).pooled
        z = self.projector(h)
        p, q = halves(self.predictor(z))
        s, t = halves(F.normalize(z.detach().float(), dim=1))
        near_s, near_t = (self.neighbour(view, batch.index) for view in (s, t))
        others = (self.temperature.now, whose(batch, self.case))
        loss = across_views(near_s, q, *others) + across_views(near_t, p, *others)
        self._seen = s, batch.index
        first, second = halves(h.detach())
        return Step(loss / 2, first, {"alignment": alignment(first, second)})

    @torch.no_grad()
    def neighbour(self, z: Tensor, index: Tensor) -> Tensor:
        """(B, D) nearest entry of the queue to each of z (eq. 2), of another sample; z itself where there is none."""
        rows, owner = self.queue.rows, self.queue.owner

        def term(z: Tensor, index: Tensor) -> Tensor:
            none = (owner < 0) | (owner == index[:, None])
            best, place = similarities(z, rows).masked_fill(none, -torch.inf).max(dim=1)
            return torch.where(best.isfinite()[:, None], rows[place], z)

        return by_rows(term, len(rows), z, index)

    def after_step(self, progress: float) -> None:
        self.temperature.move(progress)
        if self._seen is not None:
            self.queue.push(*self._seen)
