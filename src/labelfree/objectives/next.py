"""Predict what comes next."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

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
    """how many moments (tokens; frames of tubes in video) ahead the predicted token lies"""
    views: Literal["light", "none", "contrast"] = "none"
    """strength of the augmentation of the input"""
    head_layers: NonNegativeInt = 0
    """hidden layers of the head"""
    tied: bool = False
    """predict ids with the same vectors that the encoder reads them with"""


class Next(Objective):
    """Autoregressive prediction with a causal encoder: each token's output predicts the token `ahead` moments later.

    With ids it is the language model of Radford et al. 2018 (GPT, §3.1, eq. 1), with values the autoregressive
    predictive coding of Chung et al. 2019 (APC, §2.1).
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
            settings={"ahead": 1},
            options={"target": "motion"},
            modalities=("video",),
            encoder="transformer:nano",
        ),
        "apc": Recipe(
            source="Chung et al. 2019, APC, §2.1 and §4.2: frames three steps ahead carry more than the next one; "
            "absolute error. Here three tokens ahead, which of recordings are `patch` frames each",
            settings={"ahead": 3},
            options={"target_error": "absolute"},
            modalities=("series", "audio"),
            encoder="transformer:nano",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: NextSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        bias, table = modality.target_bias(), encoder.token_table() if self.settings.tied else None
        self.head = token_head(encoder.dim, self.settings.head_layers, modality.target_dim, table, bias)

    @property
    def next_head(self) -> nn.Module | None:
        return self.head if self.settings.ahead == 1 and not self.settings.tied else None

    def predict_next(self, view: Batch, last: bool = True) -> Tensor:
        if self.settings.ahead != 1:
            raise Refusal(
                f"This model says what lies {self.settings.ahead} tokens ahead, not what comes next.",
                "Pretrain with ahead=1.",
            )
        tokens = self.encoder(view).tokens
        return self.head(tokens[:, -self.modality.moment :] if last else tokens).float()

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, self.settings.views)
        features = self.encoder(view)
        modality, moment = self.modality, self.modality.moment
        ahead = min(self.settings.ahead, later_moments(features.tokens.shape[1], moment)) * moment
        target = modality.targets(view)[:, ahead:]
        counted = valid_tokens(features)[:, ahead:]
        return Step(
            token_error(self.head, modality, features.tokens[:, :-ahead], target, counted), features.pooled.detach()
        )
