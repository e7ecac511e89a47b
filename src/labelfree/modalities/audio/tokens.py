"""Waveforms as tokens: the convolutions of wav2vec 2.0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelfree.data.batch import Batch

#: Milliseconds a token, about.
TOKEN_MS = 20.0


def layers(rate: int) -> list[tuple[int, int]]:
    """(kernel, stride) of each convolution, so that a token is about 20 ms.

    At 16 kHz they are the published seven: 10/5, four times 3/2, twice 2/2, together 320 samples (Baevski et al. 2020,
    appendix B); other rates have more or fewer of the layers between.
    """
    halvings = max(2, round(math.log2(rate * TOKEN_MS / 1000 / 5)))
    return [(10, 5), *[(3, 2)] * (halvings - 2), *[(2, 2)] * 2]


def stride(rate: int) -> int:
    """Samples from one token to the next."""
    return math.prod(step for _, step in layers(rate))


def reach(rate: int) -> int:
    """Samples that one token sees."""
    samples = 1
    for kernel, step in reversed(layers(rate)):
        samples = (samples - 1) * step + kernel
    return samples


def token_counts(samples: Tensor | int, rate: int) -> Tensor | int:
    """Tokens of so many samples; at least one."""
    found = (samples - reach(rate)) // stride(rate) + 1
    return found.clamp_min(1) if isinstance(found, Tensor) else max(found, 1)


class Convolution(nn.Module):
    """A strided convolution over (B, T, C) without padding, layer normalisation, GELU.

    Layer and not group normalisation, as in wav2vec 2.0's later models: it does not look at padding.
    """

    def __init__(self, channels: int, width: int, kernel: int, step: int) -> None:
        super().__init__()
        self.kernel, self.step = kernel, step
        self.linear = nn.Linear(kernel * channels, width, bias=False)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        cut = x.unfold(1, self.kernel, self.step).transpose(2, 3).flatten(2)
        return F.gelu(self.norm(self.linear(cut)))


class WaveStem(nn.Module):
    """(B, T, 1) waveforms → tokens: convolutions of width `width`, layer normalisation, a linear map to `dim`."""

    def __init__(self, rate: int, width: int, dim: int) -> None:
        super().__init__()
        self.rate = rate
        shapes = layers(rate)
        self.convolutions = nn.Sequential(
            *(Convolution(1 if n == 0 else width, width, *shape) for n, shape in enumerate(shapes))
        )
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, dim)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        short = reach(self.rate) - batch.data.shape[1]
        x = F.pad(batch.data, (0, 0, 0, short)) if short > 0 else batch.data
        tokens = self.project(self.norm(self.convolutions(x)))
        return tokens, valid_tokens(batch, self.rate, tokens.shape[1])


def valid_tokens(batch: Batch, rate: int, count: int) -> Tensor | None:
    """(B, N) bool, true where a token sees nothing but its sample; None where there is no padding."""
    if batch.lengths is None:
        return None
    return torch.arange(count, device=batch.data.device) < token_counts(batch.lengths, rate)[:, None]  # type: ignore[index]
