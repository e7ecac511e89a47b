"""Instance discrimination: each sample is a class of its own, and a memory holds what stands for it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError
from labelfree.losses.contrastive import among_instances
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import mlp
from labelfree.objectives._memory import Bank, sized_by_state
from labelfree.objectives._temperature import Temperature, TemperatureSettings
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Widths


class InstanceSettings(TemperatureSettings):
    """Settings of instance discrimination."""

    views: Literal["contrast", "light"] = "contrast"
    """strength of the augmentation"""
    temperature: PositiveFloat = 0.07
    """divides the cosine similarities, at the start"""
    projector: Widths = (128,)
    """widths of the projection head's layers"""
    head_norm: bool = True
    """batch normalisation after the head; the paper's residual networks have their own"""
    negatives: NonNegativeInt = 4096
    """entries of the memory bank, drawn anew each step, that a sample is compared with; 0 for all"""
    memory_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """share of itself that an entry keeps when its sample is seen again"""


class Instance(Objective):
    """Non-parametric instance discrimination (Wu et al. 2018, §3): one view a step, told from what the memory holds of
    other samples. The softmax (eq. 2) is over a share of the memory, in place of the paper's noise contrast (§3.2), and
    without its proximal term (§3.3).
    """

    name = "instance"
    settings_class = InstanceSettings
    needs = frozenset({Need.VIEWS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 5e-4, "warmup": 0.03}
    vital = {"spread": (0.02, "the head gives all samples one vector")}
    recipes = {
        "instance-resnet": Recipe(
            source="Wu et al. 2018, §3, §4: width 128, temperature .07, 4096 negatives, SGD .03, weight decay 5e-4",
            settings={"head_norm": False},
            training={"optimizer": "sgd", "learning_rate": 0.03, "weight_decay": 5e-4, "warmup": 0.01},
            options={"augment": "V"},
            modalities=("image",),
            encoder="timm:resnet18",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: InstanceSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        projector = mlp(encoder.dim, *own.projector, norm=False)
        # Without any normalisation a network may give all samples one vector, and the memory soon holds nothing else.
        self.projector = (
            projector.append(nn.BatchNorm1d(own.projector[-1], affine=False)) if own.head_norm else projector
        )
        self.temperature = Temperature(own)
        self.bank: Bank | None = None
        self.register_load_state_dict_pre_hook(sized_by_state)
        self._seen: tuple[Tensor, Tensor] | None = None

    def expect(self, samples: int) -> None:
        self.bank = Bank(samples, self.settings.projector[-1])
        # At random at first, as in the authors' code. Were samples told from what the network said of others alone, all
        # would flee from where these were a pass ago, to one and the same place.
        anywhere = torch.randn(self.bank.rows.shape, generator=torch.Generator().manual_seed(0))
        self.bank.rows.copy_(F.normalize(anywhere, dim=1))

    def loss(self, batch: Batch, draw: Draw) -> Step:
        if self.bank is None:
            raise LabelfreeError("The memory has no size yet.", "Call expect(samples) before the first step.")
        h = self.encoder(self.modality.view(batch, draw.view(0), self.settings.views)).pooled
        z = self.projector(h)
        v = F.normalize(z.detach().float(), dim=1)
        chosen = self._negatives(draw)
        mine, others = self.bank.rows[batch.index], self.bank.rows[chosen]
        loss = among_instances(z, mine, others, batch.index[:, None] == chosen, self.temperature.now)
        self._seen = F.normalize(torch.lerp(v, mine, self.settings.memory_momentum), dim=1), batch.index
        logs = {"memory_agreement": (v * mine).sum(dim=1).mean(), "spread": 1 - v.mean(dim=0).square().sum()}
        return Step(loss, h.detach(), logs)

    def _negatives(self, draw: Draw) -> Tensor:
        """(P,) int64 entries of the memory, the same for all samples on all processes."""
        assert self.bank is not None
        samples, count = len(self.bank.rows), self.settings.negatives
        if not 0 < count < samples:
            return torch.arange(samples, device=self.bank.rows.device)
        return draw.shared.integers("negatives", samples, count)[0]

    def after_step(self, progress: float) -> None:
        self.temperature.move(progress)
        if self.bank is not None and self._seen is not None:
            self.bank.write(*self._seen)
