"""What the objectives on two views of a sample share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.modalities.base import Modality
from labelfree.settings import Settings


class ViewSettings(Settings):
    """How the two views are made."""

    views: Literal["contrast", "light", "none", "one"] = "contrast"
    """strength of the augmentation; none leaves dropout inside the encoder as the only difference; one augments the
    first view alone (contrast), the second is the sample as it is"""


def two_views(modality: Modality, batch: Batch, draw: Draw, policy: str) -> Batch:
    """First views of all samples, then second views: 2B rows, for one forward pass."""
    policies = ("contrast", "none") if policy == "one" else (policy, policy)
    return Batch.cat([modality.view(batch, draw.view(number), policies[number]) for number in (0, 1)])


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(2B, ...) → the rows of the first views and of the second."""
    first, second = x.chunk(2)
    return first, second
