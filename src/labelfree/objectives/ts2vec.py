"""TS2Vec: two overlapping crops agree on the steps they share."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.dataset import Description
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder, Features
from labelfree.losses.hierarchical import hierarchical_contrast
from labelfree.losses.masked import take
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._teacher import frozen_copy
from labelfree.objectives.base import Objective, Step
from labelfree.settings import Settings


class TS2VecSettings(Settings):
    """Settings of TS2Vec."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """weight of the instance contrast (between samples); the rest is the temporal contrast (between steps)"""
    mask: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """share of tokens hidden at random from the encoder, in each crop anew"""
    average: bool = True
    """keep the mean of the weights over all steps (as the published code does) instead of the last ones"""


class TS2Vec(Objective):
    """Hierarchical contrast of overlapping crops (Yue et al. 2022, "TS2Vec: Towards Universal Representation of Time
    Series", §3).

    The two crops differ in their context and in which tokens are hidden, but steps that they share must get the same
    features: at each of several time scales, such a step is told from other steps, and from other samples at that step.
    """

    averages: Tensor

    name = "ts2vec"
    settings_class = TS2VecSettings
    needs = frozenset({Need.ALIGNED_VIEWS, Need.TOKENS})
    #: As published, the rate does not fall: the averaged weights settle instead.
    defaults = {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "batch_size": 8,
        "warmup": 0.0,
        "schedule": "constant",
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: TS2VecSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self._hides = Need.MASK in encoder.can and self.settings.mask > 0
        self.averaged = frozen_copy(encoder) if self.settings.average else None
        self.register_buffer("averages", torch.zeros(()))

    @classmethod
    def enough(cls, found: Description) -> int | None:
        """As published (appendix C.3: 200 steps, 600 for more than 100,000 values), but every sample twice."""
        if "values" not in found.numbers:
            return None
        published = 200 if found.numbers["values"] <= 100_000 else 600
        return max(published, 2 * found.count // int(cls.defaults["batch_size"]))

    @property
    def product(self) -> Encoder:
        return self.encoder if self.averaged is None else self.averaged

    def loss(self, batch: Batch, draw: Draw) -> Step:
        one, two, shared = self.modality.overlapping_views(batch, draw)
        first, second = self._encode(one), self._encode(two)
        z1, z2 = (_pick(f.tokens, shared[view]) for view, f in enumerate((first, second)))
        valid = None if first.valid is None else _pick(first.valid, shared[0])
        if valid is not None and second.valid is not None:
            valid = valid & _pick(second.valid, shared[1])
        return Step(hierarchical_contrast(z1, z2, self.settings.alpha, valid), first.pooled.detach())

    def _encode(self, view: Batch) -> Features:
        if not self._hides or view.draw is None:
            return self.encoder(view)
        hidden = view.draw.bernoulli("hidden", self.settings.mask, self.modality.token_count(view))
        return self.encoder(view, hidden)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the mean of the weights, which counts all steps so far alike (Izmailov et al. 2018)."""
        if self.averaged is None:
            return
        self.averages += 1
        share = self.averages.reciprocal()
        for mean, now in zip(self.averaged.state_dict().values(), self.encoder.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, share.to(mean.dtype))
            else:
                mean.copy_(now)


def _pick(tokens: Tensor | None, where: Tensor | slice) -> Tensor:
    assert tokens is not None
    return tokens[:, where] if isinstance(where, slice) else take(tokens, where)
