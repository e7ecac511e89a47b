"""A network of one's own: any `nn.Module` from a view's tensor to features is pretrained as it is."""

import numpy as np
from torch import Tensor, nn

import labelfree


class Recurrent(nn.Module):
    """A GRU over the steps of a series: (B, T, C) → (B, T, D)."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.nan_to_num(0))[0]  # a missing value is NaN; 0 is the mean of a normalised channel


def waves(count: int) -> np.ndarray:
    """(count, 64, 2) noisy waves of three frequencies."""
    generator = np.random.default_rng(0)
    rate = generator.choice([2, 3, 5], count)[:, None]
    angle = 2 * np.pi * (rate * np.linspace(0, 1, 64) + generator.uniform(size=(count, 1)))
    return np.stack([np.sin(angle), np.cos(angle)], axis=2) + generator.normal(0, 0.3, (count, 64, 2))


def main(steps: int = 200, count: int = 500, out: str | None = None) -> np.ndarray:
    run = labelfree.pretrain(waves(count), method="simclr", encoder=Recurrent(2), steps=steps, batch_size=64, out=out)
    # the run's files hold weights, never code: give the network again to load them
    same = labelfree.load(run.path, encoder=Recurrent(2))
    features = same.embed(waves(count))
    print(f"{features.shape[0]} series became {features.shape[1]} features each")
    return features


if __name__ == "__main__":
    main()
