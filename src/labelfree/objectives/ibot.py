"""iBOT: DINO, and the same game for tokens that are hidden from the student."""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder, Features
from labelfree.errors import Refusal
from labelfree.losses.distillation import koleo, sinkhorn, soft_cross_entropy
from labelfree.losses.masked import hidden_positions, take
from labelfree.losses.regression import alignment
from labelfree.modalities.base import Modality, hidden_count
from labelfree.needs import Need
from labelfree.objectives._prototypes import PrototypeHead
from labelfree.objectives._teacher import follow, frozen_copy, undropped
from labelfree.objectives._views import halves, two_views
from labelfree.objectives.base import Recipe, Step
from labelfree.objectives.dino import DINO, DINOSettings, label_logs
from labelfree.settings import Share


class IBOTSettings(DINOSettings):
    """Settings of iBOT."""

    ratio: float = Field(0.3, gt=0, lt=1)
    """share of the tokens that is hidden, of those views that hide any"""
    hiding: Share = 0.5
    """share of the views that hide tokens"""
    token_weight: NonNegativeFloat = 1.0
    """weight of the hidden tokens' part"""
    token_head: bool = False
    """give hidden tokens a head and prototypes of their own (DINOv2) instead of those of whole samples"""


class IBOT(DINO):
    """Image BERT with an online tokenizer (Zhou et al. 2022, "iBOT", §3.2): the teacher, which sees all tokens,
    gives soft labels to those that are hidden from the student. Tokens use the head and prototypes of the whole sample,
    unless they have their own. In `ibot-vit` and `dinov2` a class token represents the sample, as in the papers;
    otherwise the encoder's pooled features do, mostly the mean of its tokens.
    """

    name = "ibot"
    settings_class = IBOTSettings
    needs = frozenset({Need.VIEWS, Need.TOKENS, Need.MASK})
    token_centre: Tensor
    recipes = {
        "ibot-vit": Recipe(
            source="Zhou et al. 2022, §3.2, §4.1: 30 % of the patches of half of the views (there 10 to 50 %), ten "
            "small crops of at most a quarter of a picture, large ones of at least as much, 8,192 prototypes, weight "
            "decay .04 rising to .4",
            settings={"local_crops": 10, "projector": (2048, 2048, 256), "prototypes": 8192},
            training={"learning_rate": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4},
            options={"mask_shape": "blocks", "class_token": True, "crop_min": 0.25, "local_crop_max": 0.25},
            modalities=("image",),
            encoder="transformer:small",
        ),
        "dinov2": Recipe(
            source="Oquab et al. 2023, DINOv2, §4: iBOT with Sinkhorn–Knopp in place of centring, KoLeo .1, "
            "eight small crops of at most .32 of a picture, large ones of at least as much, a head for samples and one "
            "for tokens; the teacher's momentum from .992, as their code has it. There are more prototypes there",
            settings={"local_crops": 8, "centring": "sinkhorn", "koleo": 0.1, "projector": (2048, 2048, 256)}
            | {"token_head": True, "teacher_momentum": 0.992},
            training={"learning_rate": 5e-4, "weight_decay": 0.04, "weight_decay_end": 0.2},
            options={"mask_shape": "blocks", "class_token": True, "crop_min": 0.32, "local_crop_max": 0.32},
            modalities=("image",),
            encoder="transformer:small",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: IBOTSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        if "replace" not in encoder.hides:
            raise Refusal(f"Encoder '{encoder.name}' cannot replace hidden tokens.", "Use a transformer.")
        self.register_buffer("token_centre", torch.zeros(self.settings.prototypes))
        self._next_token_centre: Tensor | None = None
        if self.settings.token_head:
            self.token_head = PrototypeHead(encoder.dim, self.settings.projector, self.settings.prototypes)
            self.teacher_token_head = frozen_copy(self.token_head)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        views = two_views(self.modality, batch, draw, own)
        assert views.draw is not None
        mask = self.modality.sample_mask(views, views.draw, own.ratio)
        mask = mask & views.draw.bernoulli("hiding", own.hiding)[:, None]
        student = self.encoder(views, mask)
        with torch.no_grad():
            teacher = self.teacher_encoder(undropped(views))
            labels = self._assigned(self.teacher_head(teacher.pooled))
        loss = self._agreement(labels, self._cosines(student.pooled), self._of_crops(batch, draw))
        hidden = self._hidden(mask, student, teacher)
        first, second = halves(student.pooled)
        if own.koleo:
            loss = loss + own.koleo * (koleo(first) + koleo(second))
        logs = {"alignment": alignment(first, second), **label_logs(labels)}
        return Step(loss + own.token_weight * hidden, first.detach(), {**logs, "hidden": hidden.detach()})

    def _hidden(self, mask: Tensor, student: Features, teacher: Features) -> Tensor:
        """Mean cross-entropy of a view's hidden tokens (eq. 2), 0 where it hides none, as in the authors' code; of this
        the mean over views.
        """
        own = self.settings
        head, teacher_head = self.head, self.teacher_head
        if own.token_head:
            head, teacher_head = self.token_head, self.teacher_token_head
        places, hidden = hidden_positions(mask, hidden_count(mask.shape[1], own.ratio))
        assert student.tokens is not None
        assert teacher.tokens is not None
        with torch.no_grad():
            cosines = teacher_head(take(teacher.tokens, places)).flatten(0, 1)
        there = hidden.flatten()
        if own.centring == "sinkhorn":
            label = sinkhorn(cosines, self.temperature, weight=there)
        else:
            label, self._next_token_centre = self._centred(cosines, self.token_centre, there)
        label = label.unflatten(0, places.shape)
        guess = self._cosines(take(student.tokens, places), head) / own.student_temperature
        error = (soft_cross_entropy(label, guess) * hidden).sum(dim=1) / hidden.sum(dim=1).clamp_min(1)
        return error.mean()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        if self._next_token_centre is not None:
            self.token_centre.copy_(self._next_token_centre)
        if self.settings.token_head:
            follow(self.teacher_token_head, self.token_head, self._momentum(progress))
        super().after_step(progress)
