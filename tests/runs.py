"""A run without a training: a small network on small pictures, as a folder on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from labelfree.encoders.custom import Custom
from labelfree.encoders.saved import save_encoder
from labelfree.files import write_json
from labelfree.modalities.image import Image
from labelfree.run import Run


class Net(nn.Module):
    """Two convolutions and the mean and maximum of their maps."""

    dim, shape = 16, "pooled"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(x)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def pictures(count: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8, 8) uint8 noisy stripes, whose direction is the class: rows, columns, diagonals."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    row, column = np.mgrid[:8, :8]
    waves = np.stack([row, column, row + column])[y] + rng.integers(0, 4, (count, 1, 1))
    x = 128 + 90 * np.sin(np.pi * waves / 2) + rng.normal(0, 25, (count, 8, 8))
    return x.clip(0, 255).astype(np.uint8), y


def save(path: Path, count: int, seed: int, **columns: np.ndarray) -> Path:
    """Write pictures with their label (and further columns) as .npz."""
    x, y = pictures(count, seed)
    np.savez(path, **{"images": x, "label": np.array(["rows", "columns", "diagonals"])[y], **columns})
    return path


def make_run(folder: Path, source: Path, seed: int = 0) -> Run:
    """A run whose encoder is a small network with random weights."""
    modality = Image(Image.settings_class.read({"size": 8}, "image"))
    modality.fit(modality.open(source))
    torch.manual_seed(seed)
    encoder = Custom(Net(), Net.dim, Net.shape)
    save_encoder(folder / "encoder", encoder, modality, "custom:Net", causal=False)
    write_json(
        folder / "run.json",
        {
            "state": "finished",
            "source": str(source),
            "found": {"count": 3, "facts": {"sizes": "8×8 <b>"}},
            "fingerprint": modality.open(source).fingerprint(),
            "modality": "image",
            "method": "simclr",
            "encoder": "custom:Net",
            "step": 40,
            "seconds": 1.0,
            "settings": {"training": {"batch_size": 32}},
            "choices": [{"key": "method", "value": "simclr", "reason": "few <pictures>"}],
            "versions": {"torch": "2"},
            "hardware": {"cpu": "a"},
            "warnings": [],
        },
    )
    return Run(folder, Net())
