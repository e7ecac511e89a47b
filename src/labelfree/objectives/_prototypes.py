"""The head of self-distillation: a bottleneck on the sphere, and prototypes there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelfree.losses.rows import similarities

#: What shows in `distinct` soft labels, see `Objective.vital`.
ONE_LABEL = {"labels": (1.01, "all samples get the same labels")}


class PrototypeHead(nn.Module):
    """Linear layers with GELU, unit length, then the cosine to each prototype (Caron et al. 2021, DINO, appendix C).

    Arguments:
        dim: width D of the features.
        widths: of the layers; the last is the bottleneck's.
        prototypes: K.
    """

    def __init__(self, dim: int, widths: Sequence[int], prototypes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, wider in pairwise((dim, *widths)):
            layers += [nn.Linear(width, wider), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.prototypes = nn.Parameter(torch.empty(prototypes, widths[-1]))
        # as long as in the authors' code: what is longer turns more slowly
        nn.init.uniform_(self.prototypes, -(widths[-1] ** -0.5), widths[-1] ** -0.5)

    def forward(self, x: Tensor, learn: Tensor | float = 1.0) -> Tensor:
        """(..., D) → (..., K) cosines.

        Args:
            learn: 1 where the prototypes learn, 0 while they are kept as they are.
        """
        prototypes = F.normalize(self.prototypes, dim=1)
        prototypes = learn * prototypes + (1 - learn) * prototypes.detach()
        return similarities(F.normalize(self.layers(x).float(), dim=-1), prototypes)
