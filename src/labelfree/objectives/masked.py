"""Masked modelling: hide some tokens, predict them from the rest."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as binary_cross_entropy

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder, Hide
from labelfree.errors import Refusal
from labelfree.losses.masked import differ, hidden_positions, take, visible_positions
from labelfree.modalities.base import Modality, hidden_count
from labelfree.needs import Need
from labelfree.objectives._decoder import HEAD, Decoder
from labelfree.objectives._heads import token_error, token_head, valid_tokens
from labelfree.objectives.base import Objective, Recipe, Reconstruction, Step
from labelfree.settings import Settings


class MaskedSettings(Settings):
    """Settings of masked modelling."""

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """share of the tokens that is hidden"""
    hide: Literal["auto", "drop", "replace"] = "auto"
    """drop hidden tokens and decode (MAE), or replace them (BERT, SimMIM); auto: as the encoder prefers"""
    views: Literal["light", "none", "contrast"] = "light"
    """strength of the augmentation before hiding"""
    decoder_width: Annotated[int, Field(gt=0, multiple_of=HEAD)] | Literal["auto"] = "auto"
    """width of the decoder, where tokens are dropped, a multiple of 32; auto: the encoder's, at most 512"""
    decoder_depth: PositiveInt = 2
    """blocks of the decoder, where tokens are dropped"""
    head_layers: NonNegativeInt = 0
    """hidden layers of the head, where tokens are replaced"""
    everything: bool = False
    """whether visible tokens are predicted too, as in VIME"""
    detect: NonNegativeFloat = 0.0
    """weight of VIME's mask estimation: was this token's value swapped? (where hidden tokens are replaced)"""


class Masked(Objective):
    """Predict the modality's targets of hidden tokens.

    Where the encoder drops them (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", §3), a small
    decoder sees the encoded rest and mask tokens in their places. Where it replaces them (Devlin et al. 2019, "BERT",
    §3.1; Xie et al. 2022, "SimMIM", §3), a head on the encoder predicts. Only hidden tokens are predicted.
    """

    name = "masked"
    settings_class = MaskedSettings
    needs = frozenset({Need.TOKENS, Need.MASK, Need.TARGETS})
    keeps = ("head", "spread")
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "beta2": 0.95, "warmup": 0.05}
    recipes = {
        "mae": Recipe(
            source="He et al. 2022, MAE, §3, §4.1: 75 % of the patches are dropped; decoder scaled to the encoder",
            settings={"ratio": 0.75, "hide": "drop"},
            modalities=("image",),
        ),
        "mae-vit": Recipe(
            source="He et al. 2022, MAE, §3, with the settings of solo-learn (da Costa et al. 2022) for small "
            "pictures: ViT-S, decoder of width 512 and 8 blocks, crops of .08 or more",
            settings={"ratio": 0.75, "hide": "drop", "decoder_width": 512, "decoder_depth": 8},
            training={"learning_rate": 2e-4, "weight_decay": 0.05, "beta2": 0.95, "warmup": 0.01},
            options={"light_crop_min": 0.08},
            modalities=("image",),
            encoder="transformer:small",
        ),
        "simmim": Recipe(
            source="Xie et al. 2022, SimMIM, §3, §4.1: 60 % of the picture is replaced, in squares of 2 × 2 patches; a "
            "linear head predicts pixels, with an absolute error; crops of .67 or more",
            settings={"ratio": 0.6, "hide": "replace"},
            options={"target": "pixels", "target_error": "absolute", "mask_shape": "squares", "light_crop_min": 0.67},
            modalities=("image",),
        ),
        "inpainting": Recipe(
            source="Pathak et al. 2016, Context Encoders, §3: the pixels of a block, a quarter of the picture, from "
            "what is around it; squared error alone, without their adversary",
            settings={"ratio": 0.25},
            options={"mask_shape": "block", "target": "pixels"},
            modalities=("image",),
        ),
        "colourisation": Recipe(
            source="Zhang et al. 2016, Colorful Image Colorization, §2: the colours of a picture shown in grey; "
            "squared error (eq. 1), where theirs goes on to classes of colours",
            settings={"hide": "replace", "everything": True},
            options={"target": "colour"},
            modalities=("image",),
        ),
        "bert": Recipe(
            source="Devlin et al. 2019, BERT, §3.1, task 1: 15 % of the tokens; trained as in Geiping & Goldstein "
            "2023, Cramming, §4.3: Adam 1e-3, weight decay .01, clipping .5, no dropout. The rate falls along a cosine "
            "after a short warm-up; theirs rises over three quarters of the training and falls along a line",
            settings={"ratio": 0.15, "hide": "replace", "head_layers": 1},
            training={"learning_rate": 1e-3, "weight_decay": 0.01, "beta2": 0.98, "clip": 0.5},
            options={"dropout": 0.0, "word_vectors": "random"},
            modalities=("text",),
            encoder="transformer:nano",
        ),
        "videomae": Recipe(
            source="Tong et al. 2022, VideoMAE, §3.3: 90 % of the tubes are dropped, the same squares in all frames; "
            "AdamW (.9, .95)",
            settings={"ratio": 0.9, "hide": "drop"},
            modalities=("video",),
            encoder="transformer:tiny",
        ),
        "masked-events": Recipe(
            source="BERT's task (Devlin et al. 2019, §3.1) on the events around an edge: who, when and what is hidden",
            settings={"ratio": 0.4},
            modalities=("events",),
            encoder="transformer:nano",
        ),
        "vime": Recipe(
            source="Yoon et al. 2020, VIME, §4.1: 30 % of the columns show another row's value; give back all values, "
            "and tell which ones changed (mean squared error has twice the weight)",
            settings={"ratio": 0.3, "hide": "replace", "views": "none", "everything": True, "detect": 0.5},
            options={"swap": 1.0},
            modalities=("table",),
            encoder="mlp",
        ),
        "masked-audio": Recipe(
            source="Liu et al. 2020, Mockingjay, §2.2: stretches of frames are hidden, and predicted from both sides; "
            "half of them, as wav2vec 2.0 hides; absolute error",
            settings={"ratio": 0.5},
            options={"target_error": "absolute"},
            modalities=("audio",),
            encoder="transformer:nano",
        ),
        "masked-series": Recipe(
            source="Zerveas et al. 2021, §3.2: stretches of values are hidden, and predicted; Nie et al. 2023, "
            "PatchTST, §3.2: 40 % of the patches. Channels are hidden together, there each by itself",
            settings={"ratio": 0.4},
            modalities=("series",),
            encoder="transformer:nano",
        ),
        "graphmae": Recipe(
            source="Hou et al. 2022, GraphMAE, §3.2, appendix A.2: half of the nodes lose their features, a graph "
            "network decodes, scaled cosine error. Settings are those for Cora, on whose words it has 84.2 % with GAT "
            "512 after 1500 epochs; its 88.2 % on MUTAG, with GIN, are of others",
            settings={"ratio": 0.5, "hide": "replace", "views": "none"},
            training={"learning_rate": 1e-3, "weight_decay": 2e-4, "beta2": 0.999},
            options={"node_error": "cosine", "error_power": 3.0, "swap": 0.05},
            modalities=("graph",),
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: MaskedSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        own = self.settings
        self.hide: Hide = encoder.hides[0] if own.hide == "auto" else own.hide
        if self.hide not in encoder.hides:
            known = " or ".join(encoder.hides)
            raise Refusal(f"Encoder '{encoder.name}' cannot {self.hide} hidden tokens.", f"Set hide={known}.")
        if own.detect and self.hide == "drop":
            raise Refusal("Dropped tokens cannot be told from swapped ones.", "Set hide=replace or detect=0.")
        self.detector = nn.Linear(encoder.dim, 1) if own.detect else None
        if self.hide == "drop":
            width = min(512, encoder.dim // HEAD * HEAD) if own.decoder_width == "auto" else own.decoder_width
            self.head: nn.Module = Decoder(encoder.dim, width, own.decoder_depth, modality.target_dim)
        else:
            self.spread = encoder.spread()
            bias, table = modality.target_bias(), encoder.token_table()
            self.head = token_head(encoder.dim, own.head_layers, modality.target_dim, table, bias)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        own = self.settings
        view = self.modality.view(batch, draw, own.views)
        mask = self.modality.sample_mask(view, draw, own.ratio)
        positions, hidden = self._asked(mask)
        target = take(self.modality.targets(view), positions)
        if self.hide == "drop":
            features = self.encoder(view, kept=self._kept(mask))
            prediction = self.head(features.tokens, mask, positions, self.modality.grid(mask.shape[1]))
            loss = weighted_mean(self.modality.token_loss(prediction.float(), target), hidden)
        else:
            shown, left = self.modality.hide(view, mask, draw)
            features = self.encoder(shown, left)
            hidden = valid_tokens(features) if own.everything else hidden
            tokens = features.tokens if self.spread is None else self.spread(view, features.tokens, mask)
            loss = token_error(self.head, self.modality, take(tokens, positions), target, hidden)
        if self.detector is None:
            return Step(loss, features.pooled.detach())
        swapped = differ(self.modality.targets(shown), self.modality.targets(view))
        guess = self.detector(features.tokens).squeeze(-1).float()
        found = weighted_mean(binary_cross_entropy(guess, swapped.float(), reduction="none"), valid_tokens(features))
        return Step(loss + own.detect * found, features.pooled.detach(), {"detection": found.detach()})

    def reconstruct(self, batch: Batch, draw: Draw) -> Reconstruction:
        modality = self.modality
        view = modality.view(batch, draw, "none")
        mask = modality.sample_mask(view, draw, self.settings.ratio)
        everywhere = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        if self.hide == "drop":
            tokens = self.encoder(view, kept=self._kept(mask)).tokens
            found = self.head(tokens, mask, everywhere, modality.grid(mask.shape[1]))
            return Reconstruction(view, view, mask, found.float(), mask)
        shown, left = modality.hide(view, mask, draw)
        tokens = self.encoder(shown, left).tokens
        tokens = tokens if self.spread is None else self.spread(view, tokens, mask)
        asked = None if self.settings.everything else mask
        return Reconstruction(view, shown, left, self.head(tokens).float(), asked)

    def _kept(self, mask: Tensor) -> Tensor:
        return visible_positions(mask, hidden_count(mask.shape[1], self.settings.ratio))

    def _asked(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) places of the tokens to predict, and (B, K) bool which of them count."""
        count = mask.shape[1]
        if not self.settings.everything:
            return hidden_positions(mask, hidden_count(count, self.settings.ratio))
        return torch.arange(count, device=mask.device).expand_as(mask), torch.ones_like(mask)
