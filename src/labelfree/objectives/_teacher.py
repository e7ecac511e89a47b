"""A teacher that follows its student as an exponential moving average (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from labelfree.data.batch import Batch

M = TypeVar("M", bound=nn.Module)


def frozen_copy(student: M) -> M:
    """The teacher at the start: a copy that no gradient reaches, and whose own layers of dropout do nothing."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return teacher


def undropped(view: Batch) -> Batch:
    """A view as a teacher sees it: without what encoders draw by it, though the teacher is in training mode.

    In the papers what is to be learnt holds no noise either: the networks of BYOL, MoCo, DINO, iBOT and I-JEPA have no
    dropout, and data2vec's code has its teacher in evaluation mode.
    """
    return view.with_(draw=None, parts={name: undropped(part) for name, part in view.parts.items()})


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 − momentum) · student, parameter by parameter.

    Running statistics of normalisation layers are not averaged: the teacher stays in training mode, sees the same
    batches as the student and has its own, as BYOL's target network does (Grill et al. 2020, §3.3).
    """
    if any(True for _ in teacher.parameters()):
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def cosine_between(start: float, progress: float, end: float) -> float:
    """`start` at the beginning, `end` at the end, along a cosine (BYOL's momentum: Grill et al. 2020, §3.3)."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2
