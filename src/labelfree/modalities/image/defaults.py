"""Defaults for pictures, from what was found and the time allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from labelfree.data.dataset import Description
from labelfree.encoders.timm import SMALL
from labelfree.modalities.base import Budget, Choice
from labelfree.modalities.capacity import transformer_for
from labelfree.modalities.image.views import patch_side
from labelfree.needs import Need


@dataclass(frozen=True)
class Rung:
    """A network to choose, and the side of the pictures that it looks at.

    Attributes:
        encoder, size: its name, and the pictures' side in pixels.
        stem: step of its first convolution on small pictures; None for the network's own stem.
        flops: operations of a training step for each view of this size: as measured on a CPU at 32 px, counted from the
            layers at larger sizes.
        worth: pictures that it ought to see, all passes together, to be chosen before the next smaller one. The last
            two learn alike in a time in which the finer one sees 30,000; the others are the authors' estimates.
    """

    encoder: str
    size: int
    stem: int | None
    flops: float
    worth: float


#: Pictures up to which the memory of all of them teaches more in short trainings than the other views of a batch;
#: `benchmarks/README.md`, CIFAR-10, has the trials.
FEW = 1000
#: Least side of pictures of which contrast sees views half as large in short trainings; measured at 28 and 32.
HALVED = 28
#: From large to small; `benchmarks/README.md`, CIFAR-10, has the trials at 32 px.
LADDER = (
    Rung("timm:resnet50", 224, None, 24.6e9, 20_000_000),
    Rung("timm:resnet18", 224, None, 10.9e9, 4_000_000),
    Rung("timm:resnet18", 128, None, 3.6e9, 2_000_000),
    Rung("timm:resnet18", 32, 1, 3.35e9, 1_000_000),
    Rung("timm:resnet10t", 32, 1, 1.85e9, 100_000),
    Rung("timm:resnet10t", 32, 2, 0.6e9, 0),
)
#: How often a picture is worth showing to a transformer, which sees another view of it each time (MAE gains up to 1,600
#: passes: He et al. 2022, fig. 7).
PASSES = 400
#: The network where epochs or steps were fixed, on a CPU; on a GPU so many seconds are reckoned with.
USUAL, WITHOUT_LIMIT = "timm:resnet18", 3600.0


def choose(found: Description, budget: Budget, given: int | None = None) -> list[Choice]:
    """Method, encoder, sizes and batch, each with the reason; `given` is the side in pixels that the user wants."""
    side = int(min(found.numbers["height"], found.numbers["width"]))
    short = budget.seconds is not None and not budget.accelerator
    batch = 128 if short else 256
    asked = [need for need in (Need.MASK, Need.CAUSAL) if need in budget.needs]  # beyond what a convolution net can
    halve = short and not asked and budget.views is not False and given is None
    rung = _rung(side, given, halve, budget)
    size, view = _sides(rung, side, given, halve)
    words = "learns in fewer passes than a transformer"
    if budget.seconds:
        words = f"sees some {_seen(rung, view, budget) / found.count:,.0f} times each picture in the time allowed"
    network = [Choice("encoder", rung.encoder, words)]
    if rung.stem is not None:
        network.append(Choice("stem", rung.stem, "the finest map that the time allows", of_encoder=True))
    if asked:
        large = transformer_for(found.count * (size // patch_side(size, "auto")) ** 2, budget, PASSES)
        network = [replace(large, reason=f"the method needs {asked[0]}; {large.reason}")]
    method = Choice("method", "simclr", "contrast of two views works in short trainings already")
    if short and found.count <= FEW and not budget.case:
        method = Choice("method", "instance", "few pictures: each is told from all others, which a memory holds")
    many = "many passes at a small size beat few at a large one"
    choices = [
        method,
        *network,
        Choice("size", size, many if size <= 32 else "there is time for many passes at this size"),
        Choice("batch_size", max(2, min(batch, found.count // 4)), f"a quarter of the pictures, at most {batch}"),
    ]
    if view < size:
        choices.append(
            Choice("view_size", view, f"steps take less than half as long as with views of {size} px", of_encoder=True)
        )
        choices.append(Choice("augment", "V", "crops of a fifth or more, with which small views were tried"))
    return choices


def _rung(side: int, given: int | None, halve: bool, budget: Budget) -> Rung:
    """The first of the ladder that suits the pictures and that the time allows; of small ones where it is unknown."""
    if given is None:
        fitting = [rung for rung in LADDER if rung.stem is not None or rung.size <= side]
    else:
        fitting = [rung for rung in LADDER if (rung.stem is None) == (given > SMALL)]
    if budget.seconds is None and not budget.accelerator:
        return next(rung for rung in fitting if rung.encoder == USUAL and (given or rung.stem))
    views = ((rung, _sides(rung, side, given, halve)[1]) for rung in fitting)
    return next((rung for rung, view in views if _seen(rung, view, budget) >= rung.worth), fitting[-1])


def _sides(rung: Rung, side: int, given: int | None, halve: bool) -> tuple[int, int]:
    """Sides in pixels of the pictures, and of the views of them that are learnt from."""
    size = given or min(rung.size, side)
    return size, size // 2 if halve and HALVED <= size <= 32 else size


def _seen(rung: Rung, view: int, budget: Budget) -> float:
    """Pictures that training sees in the time allowed, all passes together."""
    looks = 1 if budget.views is False else 2
    return (budget.seconds or WITHOUT_LIMIT) * budget.flops / (looks * rung.flops * (view / rung.size) ** 2)
