"""TS2Vec as one would write it from the paper, sharing no code with Labelfree: the timing reference of `ucr.py`.

Settings are the published ones (Yue et al. 2022, appendix C): depth 10, hidden 64, output 320, kernel 3, batch 8, AdamW
1e-3, averaged weights, 200 iterations for at most 100,000 values, else 600.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset


class SameConv(nn.Module):
    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConvBlock(nn.Module):
    def __init__(self, channels: int, width: int, dilation: int, last: bool) -> None:
        super().__init__()
        self.one, self.two = SameConv(channels, width, dilation), SameConv(width, width, dilation)
        self.around = nn.Conv1d(channels, width, 1) if channels != width or last else None

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.around is None else self.around(x)
        return self.two(F.gelu(self.one(F.gelu(x)))) + around


class PlainEncoder(nn.Module):
    def __init__(self, channels: int, hidden: int = 64, depth: int = 10, dim: int = 320) -> None:
        super().__init__()
        widths = [hidden] * depth + [dim]
        self.project = nn.Linear(channels, hidden)
        self.blocks = nn.Sequential(
            *(
                ConvBlock(a, b, 2**i, i == depth)
                for i, (a, b) in enumerate(zip([hidden, *widths], widths, strict=False))
            )
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        known = ~x.isnan().any(dim=-1)
        x = self.project(torch.nan_to_num(x))
        mask = torch.rand(x.shape[:2]) < 0.5 if self.training else torch.ones(x.shape[:2], dtype=torch.bool)
        x = x * (mask & known)[..., None]
        return self.dropout(self.blocks(x.transpose(1, 2))).transpose(1, 2)


def nearest_neighbour_loss(z: Tensor, count: int) -> Tensor:
    """z (G, 2 count, D): row i of the first half and row i of the second are each other's positives."""
    similarity = z @ z.transpose(1, 2)
    logits = similarity.tril(-1)[:, :, :-1] + similarity.triu(1)[:, :, 1:]
    logits = -F.log_softmax(logits, dim=-1)
    i = torch.arange(count)
    return (logits[:, i, count + i - 1].mean() + logits[:, count + i, i].mean()) / 2


def hierarchical_loss(z1: Tensor, z2: Tensor) -> Tensor:
    total, scales = torch.tensor(0.0), 0
    while True:
        if len(z1) > 1:
            total = total + 0.5 * nearest_neighbour_loss(torch.cat([z1, z2]).transpose(0, 1), len(z1))
        if z1.shape[1] > 1:
            total = total + 0.5 * nearest_neighbour_loss(torch.cat([z1, z2], dim=1), z1.shape[1])
        scales += 1
        if z1.shape[1] == 1:
            return total / scales
        z1 = F.max_pool1d(z1.transpose(1, 2), 2).transpose(1, 2)
        z2 = F.max_pool1d(z2.transpose(1, 2), 2).transpose(1, 2)


def shifted(x: Tensor, start: np.ndarray, length: int) -> Tensor:
    steps = start[:, None] + np.arange(length)
    return x[torch.arange(len(x))[:, None], torch.from_numpy(steps)]


def train(series: np.ndarray, iterations: int, batch_size: int = 8, seed: int = 0) -> nn.Module:
    """The published loop on (N, T, C); returns the averaged encoder."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    encoder = PlainEncoder(series.shape[2])
    averaged = AveragedModel(encoder)
    averaged.update_parameters(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    data = TensorDataset(torch.from_numpy(series))
    loader = DataLoader(data, batch_size=min(batch_size, len(data)), shuffle=True, drop_last=True)
    done = 0
    while done < iterations:
        for (x,) in loader:
            steps = x.shape[1]
            length = random.integers(2, steps + 1)
            left = random.integers(steps - length + 1)
            right = left + length
            first, last = random.integers(left + 1), random.integers(right, steps + 1)
            offset = random.integers(-first, steps - last + 1, size=len(x))
            optimizer.zero_grad()
            z1 = encoder(shifted(x, offset + first, right - first))[:, -length:]
            z2 = encoder(shifted(x, offset + left, last - left))[:, :length]
            loss = hierarchical_loss(z1, z2)
            loss.backward()
            optimizer.step()
            averaged.update_parameters(encoder)
            done += 1
            if done == iterations:
                break
    return averaged.eval()


@torch.no_grad()
def encode(encoder: nn.Module, series: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """(N, T, C) → (N, 320): the maximum over time."""
    parts = torch.from_numpy(series).split(batch_size)
    return torch.cat([encoder(x).amax(dim=1) for x in parts]).numpy()
