"""The variational autoencoder: a code that is normally distributed, from which samples can be made."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.distributed import weighted_mean
from labelfree.encoders.base import Encoder, Features
from labelfree.losses.gaussian import gaussian_kl
from labelfree.modalities.base import Modality
from labelfree.objectives.autoencoder import Autoencoder, AutoencoderSettings
from labelfree.objectives.base import Step
from labelfree.settings import Share


class VAESettings(AutoencoderSettings):
    """Settings of the variational autoencoder."""

    code: PositiveInt = 64
    """dimensions of the latent code"""
    beta: NonNegativeFloat = 0.01
    """weight β of the code's KL divergence from the standard normal, divided by the tokens, beside their mean loss"""
    beta_warmup: Share = 0.2
    """share of the training over which that weight rises linearly from 0"""


class VAE(Autoencoder):
    """Auto-encoding variational Bayes (Kingma & Welling 2014, §2.3–3): the decoder sees a sample of a Gaussian whose
    mean and variance the encoder gives, and whose KL divergence from the standard normal is kept small.

    Its weight β (Higgins et al. 2017) rises from 0 (Bowman et al. 2016, §3.1), so that the code is not ignored. If
    tokens consist of M values each, β = 2σ²/M corresponds to noise of variance σ² on them; if they are ids, β = 1 gives
    the evidence bound. Features are the encoder's pooled ones, from which the code is computed.
    """

    name = "vae"
    settings_class = VAESettings
    keeps = ("posterior", "decoder")
    recipes = {}
    weight: Tensor

    def __init__(self, encoder: Encoder, modality: Modality, settings: VAESettings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.posterior = nn.Linear(encoder.dim, 2 * self.settings.code)
        self.register_buffer("weight", torch.tensor(0.0 if self.settings.beta_warmup else self.settings.beta))

    @property
    def code_width(self) -> int:
        return self.settings.code

    def loss(self, batch: Batch, draw: Draw) -> Step:
        view = self.modality.view(batch, draw, self.settings.views)
        features = self.encoder(*self._spoilt(view, draw))
        mean, log_variance = self.posterior(features.pooled).float().chunk(2, dim=1)
        code = mean + (0.5 * log_variance).exp() * draw.normal("code", self.settings.code)
        count = self._counted(features, view).sum(dim=1)
        error = self._error(code, view, features)
        divergence = weighted_mean(gaussian_kl(mean, log_variance) / count.clamp_min(1), count)
        logs = {"reconstruction": error.detach(), "divergence": divergence.detach()}
        return Step(error + self.weight * divergence, features.pooled.detach(), logs)

    def after_step(self, progress: float) -> None:
        self.weight.fill_(self.settings.beta * min(1.0, progress / max(self.settings.beta_warmup, 1e-9)))

    def _code(self, features: Features) -> Tensor:
        return self.posterior(features.pooled).chunk(2, dim=1)[0]

    def sample(self, view: Batch, draw: Draw) -> Tensor:
        """(B, N, target_dim) of samples that never were, of the size of those in `view`: normal codes, decoded."""
        return self._decoded(draw.normal("code", self.settings.code), view)
