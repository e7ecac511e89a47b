"""What the objectives on two views of a sample share."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.data.partners import PARTNER
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Modality
from labelfree.settings import Settings


class ViewSettings(Settings):
    """How the two views are made."""

    views: Literal["contrast", "light", "none", "one"] = "contrast"
    """strength of the augmentation; none: dropout is the only difference; one: the second view is the sample itself"""
    case: str = ""
    """column that says whose sample it is (a patient): the second view is then of another sample of the same case"""


def two_views(modality: Modality, batch: Batch, draw: Draw, settings: ViewSettings) -> Batch:
    """First views of all samples, then second views: 2B rows, for one forward pass.

    Batch normalisation, where a network has it, sees both views together, as in SimCLR's code; BYOL's, SimSiam's,
    Barlow Twins' and VICReg's send one view through after the other, and MoCo's shuffles keys between devices.

    With a `case` the second views are of the batch's partners: several samples of one case are each other's positives
    (Azizi et al. 2021, MICLe, §3.2).
    """
    policies = ("contrast", "none") if settings.views == "one" else (settings.views, settings.views)
    both = enumerate(of_case(batch, settings.case))
    first, second = (modality.view(one, draw.view(n), policies[n]) for n, one in both)
    if first.data.shape[1:] != second.data.shape[1:]:
        sizes = (" × ".join(map(str, view.data.shape[1:])) for view in (first, second))
        raise LabelfreeError(
            "With views=one a view and the sample itself go through the encoder together, but here they have "
            f"{' and '.join(sizes)} values.",
            "Give views the size of samples, or set views=contrast.",
        )
    return Batch.cat([first, second])


def of_case(batch: Batch, case: str) -> tuple[Batch, Batch]:
    """The batch, and its partners where there is a `case` (itself where not): what one sees and the other."""
    first = _alone(batch)
    return first, batch.parts[PARTNER].with_(group=batch.group) if case and PARTNER in batch.parts else first


def whose(batch: Batch, case: str) -> Tensor:
    """(B,) int64 whose each sample is, never -1: its case's, or, without one, nobody's but its own."""
    if not case or batch.group is None:
        return batch.index
    return torch.where(batch.group >= 0, batch.group, -2 - batch.index)


class CropSettings(ViewSettings):
    """The two views, and small crops beside them (multi-crop: Caron et al. 2020, SwAV, §3.2)."""

    local_crops: NonNegativeInt = 0
    """small crops of each sample beside the two views"""


def local_crops(modality: Modality, batch: Batch, draw: Draw, count: int) -> Batch | None:
    """`count` small crops of each sample, crop by crop: count·B rows for one forward pass; None without any."""
    if not count:
        return None
    batch = _alone(batch)
    return Batch.cat([modality.view(batch, draw.view(2 + number), "local") for number in range(count)])


def _alone(batch: Batch) -> Batch:
    """The batch without the partners of its samples."""
    return batch.with_(parts={name: part for name, part in batch.parts.items() if name != PARTNER})


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(2B, ...) → the rows of the first views and of the second."""
    first, second = x.chunk(2)
    return first, second
