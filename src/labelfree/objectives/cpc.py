"""Contrastive predictive coding: from the past, pick out the future among other moments.

Legend: B samples of this process, R processes, N tokens, D width, P moments in the pool of negatives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import gather, places, weighted_mean, world_size
from labelfree.encoders.base import Encoder
from labelfree.losses.contrastive import info_nce
from labelfree.losses.masked import take
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives._heads import later_moments, valid_tokens
from labelfree.objectives.base import Objective, Recipe, Step
from labelfree.settings import Settings


class CPCSettings(Settings):
    """Settings of CPC."""

    horizon: PositiveInt = 12
    """how many moments (tokens; frames of tubes in video) ahead are predicted: all distances from 1 to this one"""
    negatives: PositiveInt = 128
    """moments, drawn from all samples of the batch, among which the true future has to be found"""
    same_group: bool = False
    """draw the negatives of each sample from its own group (speaker, recording)"""


class CPC(Objective):
    """Contrastive predictive coding (van den Oord et al. 2018, §2): a causal context c_t scores the latents z_{t+k} of
    the next steps against those of other moments by z·W_k c (eq. 3) and InfoNCE (eq. 4).

    z is the encoder's output before any context was mixed in. The negatives are moments of the whole batch, of other
    samples and of the same ("mixed speaker", table 2), or with `same_group` of the same speaker alone.
    """

    name = "cpc"
    settings_class = CPCSettings
    needs = frozenset({Need.ORDER, Need.TOKENS, Need.CAUSAL})
    defaults = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "warmup": 0.03}
    recipes = {
        "cpc-audio": Recipe(
            source="van den Oord et al. 2018, §3.1: raw waveforms in windows of 1.28 s, 12 steps ahead; here with the "
            "convolutions of wav2vec 2.0 and a causal transformer; 128 negatives from the same group (§3.1: speaker)",
            settings={"horizon": 12, "negatives": 128, "same_group": True},
            training={"learning_rate": 2e-4},
            options={"input": "wave", "window": 1.28},
            modalities=("audio",),
            encoder="transformer:nano",
        ),
    }

    def __init__(self, encoder: Encoder, modality: Modality, settings: CPCSettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.predictors = nn.ModuleList(
            nn.Linear(encoder.dim, encoder.local_dim, bias=False) for _ in range(self.settings.horizon)
        )

    def loss(self, batch: Batch, draw: Draw) -> Step:
        features = self.encoder(self.modality.view(batch, draw, "none"))
        c, valid = features.tokens, valid_tokens(features)
        z = c if features.local is None else features.local
        pool = Pool(z, valid, draw, self.settings.negatives, batch.group if self.settings.same_group else None)
        losses, weights = [], []
        moment = self.modality.moment
        for step, predict in enumerate(self.predictors[: later_moments(z.shape[1], moment)], start=1):
            k = step * moment
            losses.append(info_nce(predict(c[:, :-k]), z[:, k:], pool.z, pool.excluded(k, z.shape[1])))
            weights.append(valid[:, k:])
        loss = weighted_mean(torch.cat(losses, dim=1), torch.cat(weights, dim=1))
        return Step(loss, features.pooled.detach(), {})


class Pool:
    """Moments drawn from all samples of all processes, the same for every prediction of the step: one pool for all
    samples, or with groups one for each sample, from those of its group.

    Attributes:
        z: (P, D) their latents; (B, P, D) with groups.
    """

    def __init__(self, z: Tensor, valid: Tensor, draw: Draw, negatives: int, group: Tensor | None = None) -> None:
        samples = len(z) * world_size()
        each = math.ceil(negatives / samples) if group is None else negatives
        order = draw.uniform("moments", z.shape[1]).masked_fill(~valid, 2.0).argsort(dim=1)
        # as many of every sample, also where some process's are shorter than those of others
        short = max(0, each - z.shape[1])
        place, there = F.pad(order[:, :each], (0, short)), F.pad(valid.gather(1, order[:, :each]), (0, short))
        every, real = gather(take(z, place)).flatten(0, 1), gather(there.long()).flatten().bool()
        self._here = places(z)
        if group is None:
            rows = draw.shared.permutation("samples", samples)[0, : max(1, negatives // each)]
            chosen = (rows[:, None] * each + torch.arange(each, device=z.device)).flatten()
        else:
            friends = self._friends(group).repeat_interleave(each, dim=1) & real
            score = draw.uniform("negatives", samples * each).masked_fill(~friends, 2.0)
            chosen = score.topk(negatives, dim=1, largest=False).indices
            real = friends.gather(1, chosen)
        self.z = every[chosen]
        self._real = real[chosen] if group is None else real
        self._place, self._sample = gather(place).flatten()[chosen], chosen // each

    def _friends(self, group: Tensor) -> Tensor:
        """(B, S) bool: which samples of all processes are of the same group as each of these, or the same."""
        of_all = gather(group)
        itself = self._here[:, None] == torch.arange(len(of_all), device=group.device)
        return itself | ((group[:, None] == of_all) & (of_all >= 0))

    def excluded(self, k: int, tokens: int) -> Tensor:
        """(B, tokens - k, P) bool: padding, other groups, and for the prediction of each moment from the k-th on, that
        moment itself.
        """
        own = (self._here[:, None] == self._sample)[:, None]
        same = torch.arange(k, tokens, device=own.device)[:, None] == self._place.unsqueeze(-2)
        return own & same | ~self._real.unsqueeze(-2)
