"""Defaults for pictures, from what was found and the time allowed."""

from __future__ import annotations

from labelfree.modalities.base import Budget, Choice, Description


def choose(found: Description, budget: Budget) -> list[Choice]:
    """Method, encoder, size and batch, each with the reason."""
    side = int(min(found.numbers["height"], found.numbers["width"]))
    size = min(32, side)
    return [
        Choice("method", "simclr", "contrast of two views works from few pictures and short trainings on"),
        Choice("encoder", "timm:resnet18", "learns in fewer passes than a transformer"),
        Choice("size", size, "many passes at a small size beat few at a large one"),
        Choice("batch_size", max(2, min(256, found.count // 4)), "a quarter of the pictures, at most 256"),
    ]
