"""ELECTRA: a small model fills gaps, the encoder tells for every token whether it was there before."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as binary_cross_entropy

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder
from labelfree.losses.masked import hidden_positions, take
from labelfree.losses.replaced import draw_ids
from labelfree.modalities.base import Modality, hidden_count
from labelfree.needs import Need
from labelfree.objectives._heads import token_head, valid_tokens
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings


class ElectraSettings(Settings):
    """Settings of replaced-token detection."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """share of the tokens that the generator fills in"""
    generator: Literal["pico", "nano", "tiny", "small"] = "pico"
    """size of the generator, a transformer that ought to be smaller than the encoder; it is not kept"""
    detection: NonNegativeFloat = 50.0
    """weight λ of the detection beside the generator's own loss"""


class Electra(Objective):
    """Replaced token detection (Clark et al. 2020, "ELECTRA", §2): a generator learns masked language modelling, and
    its guesses, drawn at random, replace what was hidden. The encoder says for every token whether it is the original.

    No gradient goes from the detection to the generator; a guess that is right counts as original. The paper shares the
    embeddings of the two; here the generator, being narrower, has its own.
    """

    name = "electra"
    settings_class = ElectraSettings
    needs = frozenset({Need.TOKENS, Need.MASK, Need.TARGETS, Need.IDS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "beta2": 0.98, "warmup": 0.05}
    recipes = {
        "electra-small": Recipe(
            source="Clark et al. 2020, §3.2, appendix A: 15 % of the tokens (there some of them stay as they are), "
            "generator a quarter as wide and as deep (a third as wide and of two blocks here), λ 50, Adam 5e-4, weight "
            "decay .01",
            settings={"ratio": 0.15, "generator": "pico", "detection": 50.0},
            training={"learning_rate": 5e-4, "weight_decay": 0.01, "beta2": 0.999, "warmup": 0.01},
            options={"word_vectors": "random"},
            modalities=("text",),
            encoder="transformer:tiny",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: ElectraSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.generator = modality.transformer(self.settings.generator, causal=False)
        bias, table = modality.target_bias(), self.generator.token_table()
        self.fill = token_head(self.generator.dim, 1, modality.target_dim, table, bias)
        self.detect = token_head(encoder.dim, 1, 1)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, "none")
        guessed, replaced = self._replaced(view, draw)
        features = self.encoder(replaced)
        other, counted = (replaced.data != view.data).float(), valid_tokens(features)
        answer = self.detect(features.tokens).squeeze(-1).float()
        detection = weighted_mean(binary_cross_entropy(answer, other, reduction="none"), counted)
        logs = {
            "generation": guessed.detach(),
            "detection": detection.detach(),
            "replaced": weighted_mean(other, counted),
        }
        return Step(guessed + self.settings.detection * detection, features.pooled.detach(), logs)

    def _replaced(self, view: Batch, draw: Draw) -> tuple[Tensor, Batch]:
        """The generator's loss, and the view with the tokens that it drew (Clark et al. 2020, §2, eq. 1–2)."""
        mask = self.modality.sample_mask(view, draw, self.settings.ratio)
        positions, hidden = hidden_positions(mask, hidden_count(mask.shape[1], self.settings.ratio))
        truth = take(view.data, positions)
        tokens = self.generator(view, mask).tokens
        logits = self.fill(take(tokens, positions)).float()
        guessed = weighted_mean(self.modality.token_loss(logits, truth), hidden)
        with torch.no_grad():
            drawn = torch.where(hidden, draw_ids(logits, draw.uniform("replace", positions.shape[1])), truth)
        return guessed, view.with_(data=view.data.scatter(1, positions, drawn))
