"""Latent prediction: hide tokens, and predict what a teacher that sees everything makes of them."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder, Hide, Over
from labelfree.errors import Refusal
from labelfree.losses.masked import hidden_positions, take, visible_positions
from labelfree.losses.regression import token_distance
from labelfree.modalities.base import Modality, hidden_count
from labelfree.needs import Need
from labelfree.objectives._decoder import HEAD, Decoder
from labelfree.objectives._heads import token_head
from labelfree.objectives._teacher import cosine_between, follow, frozen_copy, undropped
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings, Share


class LatentSettings(Settings):
    """Settings of latent prediction."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """share of the tokens that is hidden"""
    hide: Literal["auto", "drop", "replace"] = "auto"
    """drop hidden tokens and decode (I-JEPA), or replace them (data2vec); auto: as the encoder prefers"""
    views: Literal["light", "none", "contrast"] = "light"
    """strength of the augmentation before hiding"""
    top_layers: PositiveInt = 4
    """last blocks of the teacher whose mean is predicted; all where it has fewer"""
    target_norm: Over = "features"
    """what each of them is normalised over: the features of a token, or the tokens of a sample (data2vec's sound)"""
    teacher_momentum: Share = 0.99
    """share of itself that the teacher keeps each step, at the start"""
    teacher_momentum_end: Share = 1.0
    """the same at the end; it rises along a cosine"""
    beta: NonNegativeFloat = 0.0
    """errors below this are squared, larger ones not (smooth L1); 0: all are squared"""
    target_blocks: PositiveInt = 1
    """target blocks, each predicted without the mask tokens of the others (I-JEPA: 4), where tokens are dropped"""
    decoder_width: Annotated[int, Field(gt=0, multiple_of=HEAD)] | Literal["auto"] = "auto"
    """width of the decoder, where tokens are dropped, a multiple of 32; auto: half the encoder's"""
    decoder_depth: PositiveInt = 2
    """blocks of the decoder, where tokens are dropped"""
    head_layers: NonNegativeInt = 1
    """hidden layers of the head, where tokens are replaced"""


class Latent(Objective):
    """Predict a teacher's features of hidden tokens: data2vec (Baevski et al. 2022, §3) where the encoder replaces
    them, I-JEPA (Assran et al. 2023, §3) where it drops them. The teacher is the encoder's moving average. The
    student is kept, as in data2vec; I-JEPA keeps the teacher.
    """

    name = "latent"
    settings_class = LatentSettings
    needs = frozenset({Need.TOKENS, Need.MASK})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "beta2": 0.95, "warmup": 0.1}
    vital = {"target_std": (0.05, "the teacher says the same of all tokens")}
    recipes = {
        "data2vec": Recipe(
            source="Baevski et al. 2022, data2vec, §3, table 4: 60 % of a picture in blocks, mean of the top 6 blocks, "
            "smooth L1 with β 2, teacher .9998 throughout 800 epochs; here it rises to that from .998, for fewer, and "
            "averages the whole encoder, there its blocks alone",
            settings={"ratio": 0.6, "hide": "replace", "top_layers": 6, "beta": 2.0, "teacher_momentum": 0.998}
            | {"teacher_momentum_end": 0.9998},
            options={"mask_shape": "blocks"},
            modalities=("image",),
        ),
        "data2vec-audio": Recipe(
            source="Baevski et al. 2022, §3, §4.2: spans, about half of the tokens; mean of the top 8 of 12 blocks "
            "(here 3 of 4), each normalised over time (§3.3), squared error. Here what blocks give, there what their "
            "feed-forward layers add; teacher .99 rising to .999 along a cosine, the whole encoder's, there .999 to "
            ".9999 within 30,000 of 400,000 steps, the blocks'",
            settings={"ratio": 0.5, "hide": "replace", "top_layers": 3, "target_norm": "tokens"}
            | {"teacher_momentum": 0.99, "teacher_momentum_end": 0.999},
            modalities=("audio", "series"),
            encoder="transformer:nano",
        ),
        "data2vec-text": Recipe(
            source="Baevski et al. 2022, §3, §4.3: 15 % of the tokens; mean of the top 10 of 12 blocks (here 3 of 4), "
            "smooth L1 with β 4. Here all of them are replaced, what blocks give is predicted, there what their "
            "feed-forward layers add, and the teacher is as for data2vec-audio",
            settings={"ratio": 0.15, "hide": "replace", "top_layers": 3, "beta": 4.0, "teacher_momentum": 0.99}
            | {"teacher_momentum_end": 0.999},
            modalities=("text", "bytes"),
            encoder="transformer:nano",
        ),
        "ijepa": Recipe(
            source="Assran et al. 2023, I-JEPA, §3, §4: large blocks are hidden and predicted from what is left, in "
            "the space of the teacher's last layer, by a narrow predictor: four of 15–20 % there, squares of 15 % "
            "here; weight decay .04 rising to .4",
            settings={"ratio": 0.6, "hide": "drop", "target_blocks": 4, "top_layers": 1, "teacher_momentum": 0.996}
            | {"decoder_depth": 4},
            training={"weight_decay": 0.04, "weight_decay_end": 0.4},
            options={"mask_shape": "block"},
            modalities=("image",),
        ),
        "vjepa": Recipe(
            source="Bardes et al. 2024, V-JEPA, §3: nine tenths of the tubes through all frames are hidden (large "
            "blocks there, single tubes here), and predicted in the teacher's space, with an absolute error; weight "
            "decay .04 rising to .4",
            settings={"ratio": 0.9, "hide": "drop", "top_layers": 1, "teacher_momentum": 0.998, "beta": 0.001},
            training={"weight_decay": 0.04, "weight_decay_end": 0.4},
            modalities=("video",),
            encoder="transformer:tiny",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: LatentSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        self.hide: Hide = encoder.hides[0] if own.hide == "auto" else own.hide
        if self.hide not in encoder.hides:
            known = " or ".join(encoder.hides)
            raise Refusal(f"Encoder '{encoder.name}' cannot {self.hide} hidden tokens.", f"Set hide={known}.")
        if own.target_blocks > 1 and self.hide != "drop":
            raise Refusal("Hidden parts are predicted one by one where tokens are dropped.", "Set target_blocks=1.")
        if self.hide == "drop":
            width = max(HEAD, encoder.dim // 2 // HEAD * HEAD) if own.decoder_width == "auto" else own.decoder_width
            self.head: nn.Module = Decoder(encoder.dim, width, own.decoder_depth, encoder.dim)
        else:
            self.head = token_head(encoder.dim, own.head_layers, encoder.dim)
        self.teacher = frozen_copy(encoder)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        view = self.modality.view(batch, draw, own.views)
        blocks = self._blocks(view, draw)
        times, _, count = blocks.shape
        each = hidden_count(count, own.ratio / times)
        mask = all_hidden(blocks, draw, times * each) if times > 1 else blocks[0]
        positions, hidden = hidden_positions(blocks.flatten(0, 1), each)
        with torch.no_grad():
            target = self.teacher.deep(undropped(view), own.top_layers, own.target_norm)
            target = take(target.repeat(times, 1, 1), positions)
        if self.hide == "drop":
            features = self.encoder(view, kept=visible_positions(mask, min(times * each, count - 1)))
            seen, left = features.tokens.repeat(times, 1, 1), mask.repeat(times, 1)
            prediction = self.head(seen, left, positions, self.modality.grid(count), alone=True)
        else:
            features = self.encoder(view, mask)
            prediction = self.head(take(features.tokens, positions))
        loss = weighted_mean(token_distance(prediction, target, own.beta), hidden)
        spread = target.float().flatten(0, 1).std(dim=0).mean()
        return Step(loss, features.pooled.detach(), {"target_std": spread})

    def _blocks(self, view: Batch, draw: Draw) -> Tensor:
        """(M, B, N) bool: the parts that are to be predicted, which may overlap."""
        times, ratio = self.settings.target_blocks, self.settings.ratio
        draws = [draw] if times == 1 else [draw.view(f"block {number}") for number in range(times)]
        return torch.stack([self.modality.sample_mask(view, each, ratio / times) for each in draws])

    def after_step(self, progress: float) -> None:
        own = self.settings
        follow(self.teacher, self.encoder, cosine_between(own.teacher_momentum, progress, own.teacher_momentum_end))


def all_hidden(blocks: Tensor, draw: Draw, count: int) -> Tensor:
    """(M, B, N) parts → (B, N) bool, true for `count` tokens of each sample: those of its parts, and where these
    overlap others at random, so that all samples keep as many tokens. One is kept where parts are everywhere.
    """
    scores = draw.uniform("further", blocks.shape[2]) - blocks.any(dim=0).float()
    return scores.argsort(dim=1).argsort(dim=1) < min(count, blocks.shape[2] - 1)
