"""Predict what comes next."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import later_moments, token_error, token_head, valid_tokens
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings


class NextSettings(Settings):
    """Settings of next-token prediction."""

    ahead: PositiveInt = 1
    """how many moments (tokens; frames of tubes in video) ahead the first predicted one lies"""
    horizon: PositiveInt | Literal["auto"] = "auto"
    """how many moments, from `ahead` on, each token predicts; auto: up to sixteen steps of a series, else one"""
    views: Literal["light", "none", "contrast"] = "none"
    """strength of the augmentation of the input"""
    head_layers: NonNegativeInt = 0
    """hidden layers of the head"""
    tied: bool = False
    """predict ids with the same vectors that the encoder reads them with"""


class Next(Objective):
    """Autoregressive prediction with a causal encoder: each token's output predicts the token `ahead` moments later,
    and as far as the `horizon` goes those that follow it, each by a linear map of its own (Gloeckle et al. 2024,
    "Better & Faster Large Language Models via Multi-token Prediction", §2).

    With ids it is the language model of Radford et al. 2018 (GPT, §3.1, eq. 1), with values the autoregressive
    predictive coding of Chung et al. 2019 (APC, §2.1), who look further than one step ahead, since the next one
    is nearly a copy of the present.
    """

    name = "next"
    settings_class = NextSettings
    needs = frozenset({Need.ORDER, Need.TOKENS, Need.CAUSAL, Need.TARGETS})
    keeps = ("head",)
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "beta2": 0.95, "warmup": 0.03}
    recipes = {
        "gpt": Recipe(
            source="Radford et al. 2018, GPT, §3.1; optimiser of Brown et al. 2020, GPT-3, appendix B",
            settings={"tied": True},
            training={"weight_decay": 0.1, "beta2": 0.95, "clip": 1.0},
            options={"word_vectors": "random"},
            modalities=("text",),
            encoder="transformer:nano",
        ),
        "motion": Recipe(
            source="Srivastava et al. 2015, Unsupervised Learning of Video Representations using LSTMs: predict the "
            "frames that follow; of these what changes, as in Yang et al. 2022, MotionMAE",
            settings={"ahead": 1, "horizon": 1},
            options={"target": "motion"},
            modalities=("video",),
            encoder="transformer:nano",
        ),
        "apc": Recipe(
            source="Chung et al. 2019, APC, §2.1 and §4.2: frames three steps ahead carry more than the next one; "
            "absolute error. Here three tokens ahead, which of recordings are `patch` frames each",
            settings={"ahead": 3, "horizon": 1},
            options={"target_error": "absolute"},
            modalities=("series", "audio"),
            encoder="transformer:nano",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: NextSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own, bias = self.settings, modality.target_bias()
        table = encoder.token_table() if own.tied else None
        self.horizon = modality.alike if own.horizon == "auto" else own.horizon
        if table is not None and self.horizon > 1:
            raise Refusal("The vectors that read tokens predict one token each.", "Set horizon=1 or tied=false.")
        bias = None if bias is None else bias.repeat(self.horizon)
        self.head = token_head(encoder.dim, own.head_layers, self.horizon * modality.target_dim, table, bias)

    @property
    def next_head(self) -> nn.Module | None:
        own = self.settings
        return self.head if own.ahead == self.horizon == 1 and not own.tied else None

    def predict_next(self, view: Batch) -> Tensor:
        tokens, moment = self._tokens(view), self.modality.moment
        known = min(self.horizon, tokens.shape[1] // moment)  # in training none saw further than a sample is long
        found = self._apart(self.head(tokens[:, -moment:]))[:, :, :known]
        return found.transpose(1, 2).flatten(1, 2).float()

    def predict_each(self, view: Batch) -> Tensor:
        last: Any = self.head[-1]
        width = self.modality.target_dim
        return F.linear(self.head[:-1](self._tokens(view)), last.weight[:width], last.bias[:width]).float()

    def _tokens(self, view: Batch) -> Tensor:
        """(B, N, D). Raises Refusal where the head does not say what comes right after them."""
        if self.settings.ahead != 1:
            raise Refusal(
                f"This model says what lies {self.settings.ahead} tokens ahead, not what comes next.",
                "Pretrain with ahead=1.",
            )
        return self.encoder(view).tokens

    def _apart(self, found: Tensor) -> Tensor:
        """(B, N, horizon · target_dim) → (B, N, horizon, target_dim)"""
        return found.unflatten(2, (self.horizon, -1))

    def loss(self, batch: Batch, draw: Draw) -> Step:
        modality = self.modality
        view = modality.view(batch, draw, self.settings.views)
        features = self.encoder(view)
        tokens, targets, counted = features.tokens, modality.targets(view), valid_tokens(features)
        count, moment = tokens.shape[1], modality.moment
        nearest = min(self.settings.ahead, later_moments(count, moment))
        away = moment * torch.arange(nearest, nearest + self.horizon, device=tokens.device)
        places = (torch.arange(count, device=tokens.device)[:, None] + away).flatten()
        there = counted[:, places % count] & (places < count)
        head = self.head if self.horizon == 1 else lambda x: self._apart(self.head(x)).flatten(1, 2)
        loss = token_error(head, modality, tokens, targets[:, places % count], there)
        return Step(loss, features.pooled.detach())
