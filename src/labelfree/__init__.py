"""Labelfree: from unlabelled data to a proven encoder.

Names are imported when they are first used, so that `import labelfree` is instant and does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelfree.data.batch import Batch, Sample, Unreadable
    from labelfree.data.dataset import Dataset
    from labelfree.data.draw import Draw
    from labelfree.encoders.base import Encoder, Features
    from labelfree.errors import LabelfreeError, Refusal
    from labelfree.estimator import SelfSupervised
    from labelfree.evaluation.protocol import evaluate
    from labelfree.modalities.base import Modality
    from labelfree.needs import Need
    from labelfree.objectives.base import Objective, Recipe, Step
    from labelfree.run import Run, load
    from labelfree.settings import Settings
    from labelfree.tasks.doctor import Checkup, doctor
    from labelfree.tasks.finetune import Model, finetune
    from labelfree.training.pretrain import pretrain

    __version__: str

_HOMES = {
    "labelfree.data.batch": ("Batch", "Sample", "Unreadable"),
    "labelfree.data.dataset": ("Dataset",),
    "labelfree.data.draw": ("Draw",),
    "labelfree.encoders.base": ("Encoder", "Features"),
    "labelfree.errors": ("LabelfreeError", "Refusal"),
    "labelfree.estimator": ("SelfSupervised",),
    "labelfree.evaluation.protocol": ("evaluate",),
    "labelfree.modalities.base": ("Modality",),
    "labelfree.needs": ("Need",),
    "labelfree.objectives.base": ("Objective", "Recipe", "Step"),
    "labelfree.run": ("Run", "load"),
    "labelfree.settings": ("Settings",),
    "labelfree.tasks.doctor": ("Checkup", "doctor"),
    "labelfree.tasks.finetune": ("Model", "finetune"),
    "labelfree.training.pretrain": ("pretrain",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "Checkup",
    "Dataset",
    "Draw",
    "Encoder",
    "Features",
    "LabelfreeError",
    "Modality",
    "Model",
    "Need",
    "Objective",
    "Recipe",
    "Refusal",
    "Run",
    "Sample",
    "SelfSupervised",
    "Settings",
    "Step",
    "Unreadable",
    "__version__",
    "doctor",
    "evaluate",
    "finetune",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("labelfree")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'labelfree' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
