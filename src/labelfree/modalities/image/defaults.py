"""Defaults for pictures, from what was found and the time allowed."""

from __future__ import annotations

from dataclasses import dataclass

from labelfree.data.dataset import Description
from labelfree.modalities.base import Budget, Choice
from labelfree.needs import Need


@dataclass(frozen=True)
class Rung:
    """A network to choose.

    Attributes:
        encoder, stem: its name, and the step of its first convolution.
        flops: operations of a training step for each view of 32 px, as measured on a CPU.
        worth: pictures that it ought to see, all passes together, to be chosen before the next smaller one. The last
            two learn alike in a time in which the finer one sees 30,000; beyond that these are the authors' estimates.
    """

    encoder: str
    stem: int
    flops: float
    worth: float


#: Pictures up to which the memory of all of them teaches more in short trainings than the other views of a batch;
#: `benchmarks/README.md`, CIFAR-10, has the trials.
FEW = 1000
#: Least side of pictures of which contrast sees views half as large in short trainings; measured at 28 and 32.
HALVED = 28
#: From large to small; `benchmarks/README.md`, CIFAR-10, has the trials.
LADDER = (
    Rung("timm:resnet18", 1, 3.35e9, 1_000_000),
    Rung("timm:resnet10t", 1, 1.85e9, 100_000),
    Rung("timm:resnet10t", 2, 0.6e9, 0),
)


def choose(found: Description, budget: Budget) -> list[Choice]:
    """Method, encoder, sizes and batch, each with the reason."""
    size = min(32, int(min(found.numbers["height"], found.numbers["width"])))
    short = budget.seconds is not None and not budget.accelerator
    batch = 128 if short else 256
    asked = [need for need in (Need.MASK, Need.CAUSAL) if need in budget.needs]  # beyond what a convolution net can
    view = size // 2 if short and not asked and budget.views is not False and size >= HALVED else size
    rung = _rung(view, budget)
    seen = _seen(rung, view, budget)
    words = "learns in fewer passes than a transformer"
    if seen:
        words = f"sees some {seen / found.count:,.0f} times each picture in the time allowed"
    network = [
        Choice("encoder", rung.encoder, words),
        Choice("stem", rung.stem, "the finest map that the time allows", of_encoder=True),
    ]
    if asked:
        network = [Choice("encoder", "transformer:tiny", f"the method needs {asked[0]}")]
    method = Choice("method", "simclr", "contrast of two views works in short trainings already")
    if short and found.count <= FEW and not budget.case:
        method = Choice("method", "instance", "few pictures: each is told from all others, which a memory holds")
    choices = [
        method,
        *network,
        Choice("size", size, "many passes at a small size beat few at a large one"),
        Choice("batch_size", max(2, min(batch, found.count // 4)), f"a quarter of the pictures, at most {batch}"),
    ]
    if view < size:
        choices.append(
            Choice("view_size", view, f"steps take less than half as long as with views of {size} px", of_encoder=True)
        )
        choices.append(Choice("augment", "V", "crops of a fifth or more, with which small views were tried"))
    return choices


def _rung(view: int, budget: Budget) -> Rung:
    return next(rung for rung in LADDER if budget.seconds is None or _seen(rung, view, budget) >= rung.worth)


def _seen(rung: Rung, view: int, budget: Budget) -> float:
    """Pictures that training sees in the time allowed, all passes together; 0 where no time was set."""
    looks = 1 if budget.views is False else 2
    return (budget.seconds or 0) * budget.flops / (looks * rung.flops * (view / 32) ** 2)
