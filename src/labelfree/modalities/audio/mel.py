"""Log-mel spectrograms: powers in bands that are spaced as the ear hears, in frames.

Legend: R frames, M bands, w window and h hop in samples, n points of the Fourier transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from labelfree.data.on_device import on_device

#: Power below which nothing is told apart; a sine of full scale has 1/4.
FLOOR = 1e-9
LOWEST = 50.0
#: Numbers that are transformed at a time: few enough for the processor's cache.
BLOCK = 1 << 18
#: Groups of neighbouring bands, each summed over those points alone that it has.
GROUPS = 8


@dataclass(frozen=True)
class Mel:
    """How spectrograms are made: bands, samples a second, window and hop in milliseconds."""

    bands: int
    rate: int
    window_ms: float
    hop_ms: float

    @property
    def window(self) -> int:
        return max(2, round(self.rate * self.window_ms / 1000))

    @property
    def hop(self) -> int:
        return max(1, round(self.rate * self.hop_ms / 1000))

    @property
    def points(self) -> int:
        """n, a power of 2; at least 512, so that low bands have points of their own."""
        return max(512, 2 ** math.ceil(math.log2(self.window)))

    def frames(self, samples: int) -> int:
        """Frames of so many samples: one a hop, begun ones included, each in the middle of its window."""
        return -(-samples // self.hop)


@lru_cache
def filters(bands: int, rate: int, points: int) -> Tensor:
    """(n/2 + 1, M) triangles that are equally spaced on the mel scale, 2595·log10(1 + f/700), of height 1."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (LOWEST, rate / 2))
    centres = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    rise = np.diff(centres)
    offset = np.linspace(0, rate / 2, points // 2 + 1)[:, None] - centres
    triangles = np.minimum(offset[:, :-2] / rise[:-1], -offset[:, 2:] / rise[1:])
    return torch.from_numpy(triangles.clip(0).astype(np.float32))


@lru_cache
def banks(bands: int, rate: int, points: int) -> tuple[tuple[int, np.ndarray], ...]:
    """The filters in groups of neighbouring bands: the first point that a group has, and its weights (P, M / 8)."""
    found = []
    for group in np.array_split(filters(bands, rate, points).numpy(), GROUPS, axis=1):
        heard = np.flatnonzero(group.any(axis=1))
        first, last = (heard[0], heard[-1]) if len(heard) else (0, 0)  # bands may lie between two points
        found.append((int(first), np.ascontiguousarray(group[first : last + 1])))
    return tuple(found)


@lru_cache
def hann(window: int) -> Tensor:
    """(w,) Hann's window, of sum 1."""
    weights = torch.hann_window(window)
    return weights / weights.sum()


def log_mels(waves: Sequence[np.ndarray], mel: Mel) -> list[np.ndarray]:
    """(T,) recordings → (R, M) float16 each; all are transformed together.

    They are laid one behind another on the grid of hops, so that their frames are rows of one view, a few between two
    recordings excepted. What comes after the Fourier transform takes NumPy half the time that it takes torch.
    """
    hop, margin = mel.hop, mel.window - mel.hop
    counts = [mel.frames(len(wave)) for wave in waves]
    steps = [-(-(count * hop + max(margin, 0)) // hop) for count in counts]
    starts = np.concatenate([[0], np.cumsum(steps)]).tolist()
    laid = np.zeros(starts[-1] * hop + mel.window, dtype=np.float32)
    for wave, start in zip(waves, starts, strict=False):
        first = start * hop + max(margin, 0) // 2
        laid[first : first + len(wave)] = wave
    every = torch.from_numpy(laid).unfold(0, mel.window, hop)[: starts[-1]]
    done = torch.empty(len(every), mel.bands, dtype=torch.float16)
    most = max(1, BLOCK // mel.points)
    weights, windowed = hann(mel.window), torch.zeros(min(most, len(every)), mel.points)
    for first in range(0, len(every), most):
        block = every[first : first + most]
        torch.mul(block, weights, out=windowed[: len(block), : mel.window])
        spectrum = torch.fft.rfft(windowed[: len(block)]).numpy()
        power = spectrum.real**2 + spectrum.imag**2
        sums = [power[:, low : low + len(bank)] @ bank for low, bank in banks(mel.bands, mel.rate, mel.points)]
        levels = np.log(np.concatenate(sums, axis=1) + np.float32(FLOOR))
        done[first : first + most] = torch.from_numpy(levels)
    return [done[start : start + count].numpy().copy() for start, count in zip(starts, counts, strict=False)]


def log_mel(waves: Tensor, mel: Mel) -> Tensor:
    """(B, T) recordings → (B, R, M) float32."""
    margin = max(mel.window - mel.hop, 0)
    count = mel.frames(waves.shape[1])
    right = (count - 1) * mel.hop + mel.window - margin // 2 - waves.shape[1]
    frames = F.pad(waves.float(), (margin // 2, max(right, 0))).unfold(1, mel.window, mel.hop)[:, :count]
    weights, bank = hann(mel.window), filters(mel.bands, mel.rate, mel.points)
    power = torch.fft.rfft(frames * on_device(weights, waves.device), n=mel.points).abs().square()
    with torch.autocast(waves.device.type, enabled=False):
        return (power @ on_device(bank, waves.device)).add_(FLOOR).log_()


def mfcc_statistics(frames: np.ndarray, coefficients: int = 20) -> np.ndarray:
    """(R, M) log-mel frames → (5·coefficients + 1,): of each cepstral coefficient (Davis & Mermelstein 1980) mean,
    deviation, 10 % and 90 % quantile, deviation of its steps; and the logarithm of the length.
    """
    bands = frames.shape[1]
    angle = np.pi * (np.arange(bands) + 0.5)[:, None] * np.arange(min(coefficients, bands)) / bands
    c = frames.astype(np.float32) @ (np.cos(angle) * math.sqrt(2 / bands)).astype(np.float32)
    steps = np.diff(c, axis=0) if len(c) > 1 else np.zeros_like(c)
    parts = [c.mean(axis=0), c.std(axis=0), *np.quantile(c, (0.1, 0.9), axis=0), steps.std(axis=0), [np.log(len(c))]]
    return np.concatenate(parts).astype(np.float32)


def sketch(frames: np.ndarray, steps: int = 16, bands: int = 16, floor: float = 40.0) -> np.ndarray:
    """(R, M) log-mel frames → (steps · bands + 1,) means of them, below the loudest and no more than `floor` decibel
    below it; and the logarithm of the length.
    """
    x = np.maximum(frames.astype(np.float32) - frames.max(initial=-np.inf), -floor * math.log(10) / 10)
    for axis, count in enumerate((steps, bands)):
        edges = np.linspace(0, x.shape[axis], count + 1).astype(int)
        pieces = [x.take(range(a, max(a + 1, b)), axis=axis, mode="clip") for a, b in pairwise(edges)]
        x = np.stack([piece.mean(axis=axis) for piece in pieces], axis=axis)
    return np.append(x.ravel(), np.log(max(1, len(frames)))).astype(np.float32)
