"""wav2vec 2.0: from what is around a hidden token, recognise its code among those of other hidden tokens.

Legend: B samples, N tokens, K hidden ones of a sample, D width, G codebooks of V codes.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder
from labelfree.errors import Refusal
from labelfree.losses.masked import hidden_positions, take
from labelfree.losses.quantised import among_hidden, unused_codes
from labelfree.modalities.base import Modality, hidden_count
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings


class Wav2Vec2Settings(Settings):
    """Settings of wav2vec 2.0."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.49
    """share of the tokens that is hidden"""
    negatives: PositiveInt = 100
    """hidden tokens of the same sample among which the right one has to be found, at most"""
    temperature: PositiveFloat = 0.1
    """divides the cosine similarities"""
    codebooks: PositiveInt = 2
    """codebooks, each of which gives a part of a token's code"""
    codes: PositiveInt = 320
    """codes in each codebook"""
    code_width: PositiveInt = 256
    """width of a code, and of what is compared with it"""
    diversity: NonNegativeFloat = 0.1
    """weight of the diversity loss, which keeps all codes in use"""
    gumbel_start: PositiveFloat = 2.0
    """temperature of the choice of a code at the start"""
    gumbel_end: PositiveFloat = 0.5
    """the same at the end; it falls geometrically"""


class Quantiser(nn.Module):
    """Tokens → codes, one of V from each of G codebooks, chosen by a hard Gumbel softmax (Baevski et al. 2020, §2).

    Args:
        dim: width of the tokens.
        codebooks, codes: G and V.
        width: D of the codes after their linear map.
    """

    temperature: Tensor

    def __init__(self, dim: int, codebooks: int, codes: int, width: int, temperature: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.choose = nn.Linear(dim, codebooks * codes)
        nn.init.normal_(self.choose.weight)
        nn.init.zeros_(self.choose.bias)
        self.codes = nn.Parameter(torch.rand(codebooks, codes, -(-width // codebooks)))
        self.project = nn.Linear(codebooks * self.codes.shape[2], width)
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, tokens: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """(B, K, dim) → codes (B, K, D), and the logits (B, K, G, V) of the choice without noise."""
        groups, count, _ = self.codes.shape
        logits = self.choose(self.norm(tokens)).float().unflatten(2, (groups, count))
        noise = -torch.log(-torch.log(draw.uniform("gumbel", *logits.shape[1:]).clamp(1e-7, 1 - 1e-7)))
        soft = ((logits + noise) / self.temperature).softmax(dim=3)
        hard = F.one_hot(soft.argmax(dim=3), count).to(soft.dtype)
        weight = hard + soft - soft.detach()  # forward the one code, backward the soft choice
        return self.project(torch.einsum("bkgv,gvd->bkgd", weight, self.codes).flatten(2)), logits


class Wav2Vec2(Objective):
    """wav2vec 2.0 (Baevski et al. 2020, §2–3): spans of latent tokens are hidden; the encoder's output in their places
    has to find the quantised latent among distractors from the same sample.

    It reads what the encoder holds of a token before any context is mixed in, so on `input=mel` frames are quantised,
    on `input=wave` (recipe `wav2vec2-wave`) the outputs of its convolutions, normalised and brought to the encoder's
    width by a linear map; the paper quantises them before this map.
    """

    name = "wav2vec2"
    settings_class = Wav2Vec2Settings
    needs = frozenset({Need.TOKENS, Need.MASK, Need.ORDER})
    defaults = {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.01, "beta2": 0.98, "warmup": 0.08}
    recipes = {
        "wav2vec2-wave": Recipe(
            source="Baevski et al. 2020, wav2vec 2.0, §4.2, base: waveforms; half of the tokens are hidden, in spans "
            "of 200 ms, 100 distractors, 2 × 320 codes. Without their penalty on the squares of latents, a tenth of "
            "the gradient for the convolutions, and layers left out at random (5 %)",
            options={"input": "wave", "span": 200.0},
            modalities=("audio",),
            encoder="transformer:nano",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: Wav2Vec2Settings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        if encoder.token_table() is not None:
            raise Refusal(f"The tokens of {modality.name} data are codes already.", "Predict them: method masked.")
        if "replace" not in encoder.hides:
            raise Refusal(f"Encoder '{encoder.name}' cannot replace hidden tokens.", "Use transformer:nano.")
        self.quantiser = Quantiser(encoder.local_dim, own.codebooks, own.codes, own.code_width, own.gumbel_start)
        self.predict = nn.Linear(encoder.dim, own.code_width)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        view = self.modality.view(batch, draw, "light")
        mask = self.modality.sample_mask(view, draw, own.ratio)
        positions, hidden = hidden_positions(mask, hidden_count(mask.shape[1], own.ratio))
        features = self.encoder(view, mask)
        if features.local is None:
            raise Refusal(
                f"Encoder '{self.encoder.name}' does not give tokens without context.", "Use transformer:nano."
            )
        codes, logits = self.quantiser(take(features.local, positions), draw)
        chosen = self._distractors(draw, hidden)
        context = self.predict(take(features.tokens, positions))
        losses, right = among_hidden(context, codes, hidden, chosen, own.temperature)
        unused = unused_codes(logits, hidden)
        loss = weighted_mean(losses, hidden) + own.diversity * unused
        logs = {"accuracy": weighted_mean(right.float(), hidden), "unused_codes": unused}
        return Step(loss, features.pooled.detach(), {key: value.detach() for key, value in logs.items()})

    def _distractors(self, draw: Draw, hidden: Tensor) -> Tensor:
        """(B, K) bool: of each sample up to `negatives` + 1 of its hidden tokens, so that a token among them has
        `negatives` others, and one that is not has one more. The paper draws for each token anew.
        """
        score = draw.uniform("distractors", hidden.shape[1]).masked_fill(~hidden, 2.0)
        return score.argsort(dim=1).argsort(dim=1) <= self.settings.negatives

    def after_step(self, progress: float) -> None:
        start, end = self.settings.gumbel_start, self.settings.gumbel_end
        self.quantiser.temperature.fill_(start * (end / start) ** progress)
