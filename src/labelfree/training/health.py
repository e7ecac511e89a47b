"""Health of a training: what its features look like, and collapse and divergence named in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

#: Consecutive logged steps that must agree before something is said.
PATIENCE = 3
#: Effective rank below which features lie on a line, and how many of them must be there to tell.
LEAST_RANK, ENOUGH = 1.5, 6
#: Share of a training after which its labels must differ; an untrained teacher's hardly do.
BEGUN = 0.25


@torch.no_grad()
def feature_health(features: Tensor) -> dict[str, Tensor]:
    """Measures of a batch of features (B, D); scalars on the features' device.

    `feature_std`: mean standard deviation per dimension of the normalised features, times √D: 1 for features spread
    evenly over the sphere, 0 when all are one point (Chen & He 2021, §4.1). `effective_rank`: exponential of the
    entropy of the singular values of the centred features (RankMe, Garrido et al. 2023, does not centre them).
    `uniformity`: logarithm of the mean Gaussian potential of pairs (Wang & Isola 2020); lower is more even. All are NaN
    where a feature is not finite.
    """
    x = features.float()
    x = x[: 512 if x.shape[1] <= 1024 else 256]
    unit = torch.nn.functional.normalize(x, dim=1)
    centred = x - x.mean(dim=0)
    finite = torch.isfinite(centred).all()  # singular values of anything else are refused
    values = _singular_values(torch.where(finite, centred, 0.0))
    share = values / values.sum().clamp_min(1e-12)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    distance = 2 - 2 * unit @ unit.T
    pairs = (-2 * distance).exp().sum() - len(x)
    found = {
        "feature_std": unit.std(dim=0, unbiased=False).mean() * math.sqrt(x.shape[1]),
        "effective_rank": entropy.exp() * (values.sum() > 1e-9),
        "uniformity": (pairs / max(1, len(x) * (len(x) - 1))).clamp_min(1e-12).log(),
    }
    return {name: torch.where(finite, value, torch.nan) for name, value in found.items()}


def _singular_values(x: Tensor) -> Tensor:
    """Of (B, D), those that can be other than 0: roots of the eigenvalues of the smaller Gram matrix, which a GPU finds
    much faster; in float64 they are as precise as singular values in float32.
    """
    wide = (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have no float64
    gram = wide @ wide.T if len(x) < x.shape[1] else wide.T @ wide
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().to(x)


class Watch:
    """Reads logged steps and says, once each, when features or labels collapse or the loss diverges.

    Args:
        samples: B, of which each logged line tells the features.
        vital: further logs to look at, see `Objective.vital`.
    """

    def __init__(self, samples: int, vital: Mapping[str, tuple[float, str]] | None = None) -> None:
        self._samples, self._vital = samples, vital or {}
        self._recent: deque[Mapping[str, float]] = deque(maxlen=PATIENCE)
        self._best = math.inf
        self.said: dict[str, str] = {}

    def read(self, line: Mapping[str, float], progress: float = 1.0) -> list[str]:
        """Warnings that this logged line gives rise to, in words, after this share of the training."""
        self._recent.append(line)
        loss = line["loss"]
        self._best = min(self._best, loss) if math.isfinite(loss) else self._best
        if len(self._recent) < PATIENCE:
            return []
        found = {}
        least = LEAST_RANK if self._samples > ENOUGH else 0.0
        if all(past["feature_std"] < 0.01 or past["effective_rank"] < least for past in self._recent):
            found["collapse"] = (
                f"The features have collapsed: effective rank {line['effective_rank']:.1f}, standard deviation "
                f"{line['feature_std']:.3f} (1 is even). Lower learning_rate, or take larger batches."
            )
        for key, (bound, meaning) in self._vital.items():
            if progress > BEGUN and all(past.get(key, math.inf) < bound for past in self._recent):
                found[key] = (
                    f"The training has collapsed: {meaning} ({key} {line[key]:.3g}). Lower learning_rate, take larger "
                    "batches, or another method."
                )
        if all(
            not math.isfinite(past["loss"]) or past["loss"] - self._best > 3 * abs(self._best) + 3
            for past in self._recent
        ):
            found["divergence"] = (
                f"The loss diverges: {loss:.4g}, after a best of {self._best:.4g}. Lower learning_rate."
            )
        fresh = [words for kind, words in found.items() if kind not in self.said]
        self.said |= found
        return fresh
