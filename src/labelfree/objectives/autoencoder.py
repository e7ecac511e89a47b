"""Autoencoders: give a whole sample back from its one vector, perhaps from a spoilt copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder, Features
from labelfree.errors import Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._decoder import Broadcast
from labelfree.objectives._heads import token_error
from labelfree.objectives.base import Objective, Recipe, Reconstruction, Step
from labelfree.settings import Settings


class AutoencoderSettings(Settings):
    """Settings of autoencoders."""

    views: Literal["none", "light", "contrast"] = "none"
    """strength of the augmentation of samples before they are corrupted; the augmented sample is reconstructed"""
    corruption: NonNegativeFloat = 0.0
    """standard deviation of noise on the input, in those of the data; the clean sample is reconstructed"""
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the tokens that is hidden from the encoder; all are reconstructed"""
    decoder_width: PositiveInt | Literal["auto"] = "auto"
    """width of the decoder; auto: the encoder's, at most 256"""
    decoder_depth: PositiveInt = 2
    """blocks of the decoder"""


class Autoencoder(Objective):
    """Predict the modality's targets of every token from the pooled features alone (Hinton & Salakhutdinov 2006).

    With `corruption` or `ratio` the encoder sees a corrupted copy, and the clean sample is reconstructed: the denoising
    autoencoder (Vincent et al. 2010, §3; Gaussian and masking noise, §3.3).
    """

    name = "autoencoder"
    settings_class: ClassVar[type[Settings]] = AutoencoderSettings
    needs = frozenset({Need.TARGETS})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "warmup": 0.03}
    options = {"target": "pixels"}
    keeps: ClassVar[tuple[str, ...]] = ("decoder",)
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "denoising": Recipe(
            source="Vincent et al. 2010, Stacked Denoising Autoencoders, §3.3: additive Gaussian noise; the clean "
            "sample is reconstructed",
            settings={"corruption": 0.5},
            modalities=("image", "series", "audio", "video"),
        ),
        "tsdae": Recipe(
            source="Wang et al. 2021, TSDAE, §3: 60 % of the words are deleted (here hidden), and the text is "
            "reconstructed from one vector",
            settings={"ratio": 0.6},
            modalities=("text",),
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: AutoencoderSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        if own.corruption and not modality.signal:
            raise Refusal(f"{modality.name} data is not made of values that noise could be added to.", "Set ratio.")
        if own.ratio and Need.MASK not in encoder.can & modality.offers:
            raise Refusal(f"Encoder '{encoder.name}' cannot hide tokens.", "Set corruption, or use transformer:nano.")
        width = min(256, encoder.dim) if own.decoder_width == "auto" else own.decoder_width
        self.decoder = Broadcast(self.code_width, width, own.decoder_depth, modality.target_dim)

    @property
    def code_width(self) -> int:
        """Width of what a sample is decoded from."""
        return self.encoder.dim

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, self.settings.views)
        features = self.encoder(*self._spoilt(view, draw))
        return Step(self._error(features.pooled, view, features), features.pooled.detach())

    def _spoilt(self, view: Batch, draw: Draw) -> tuple[Batch, Tensor | None]:
        """The view as the encoder sees it, and which tokens are hidden."""
        own, mask = self.settings, None
        if own.corruption:
            noise = draw.normal("noise", *view.data.shape[1:])
            view = view.with_(data=view.data + own.corruption * noise.to(view.data.dtype))
        if own.ratio:
            mask = self.modality.sample_mask(view, draw, own.ratio)
            view, mask = self.modality.hide(view, mask, draw)
        return view, mask

    def _error(self, code: Tensor, view: Batch, features: Features) -> Tensor:
        """Mean loss of the tokens of `view` as they are decoded from `code` (B, ·)."""
        modality, target = self.modality, self.modality.targets(view)
        placed = self.decoder.put_down(code, modality.grid(target.shape[1]))
        return token_error(self.decoder.predict, modality, placed, target, self._counted(features, view))

    def _counted(self, features: Features, view: Batch) -> Tensor:
        """(B, N) bool, false where a token of a view is padding."""
        count = self.modality.token_count(view)
        if features.valid is not None and features.valid.shape[1] == count:
            return features.valid
        # An encoder of another make says nothing of the modality's tokens.
        return torch.ones(len(view), count, dtype=torch.bool, device=view.data.device)

    def _decoded(self, code: Tensor, view: Batch) -> Tensor:
        """(B, N, target_dim) prediction for every token of a view."""
        return self.decoder(self.decoder.put_down(code, self.modality.grid(self.modality.token_count(view)))).float()

    def reconstruct(self, batch: Batch, draw: Draw) -> Reconstruction:
        view = self.modality.view(batch, draw, "none")
        shown, hidden = self._spoilt(view, draw)
        return Reconstruction(view, shown, hidden, self._decoded(self._code(self.encoder(shown, hidden)), view))

    def _code(self, features: Features) -> Tensor:
        """What a sample is decoded from where nothing is to be random."""
        return features.pooled
