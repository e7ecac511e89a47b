"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from labelfree.training.settings import OptimSettings


def peak_rate(settings: OptimSettings, batch_size: int) -> float:
    """The peak learning rate: linear in the global batch for sgd and lars (Goyal et al. 2017), as given for adamw."""
    scale = 1.0 if settings.optimizer == "adamw" else batch_size / 256
    return settings.learning_rate * scale


def build_optimizer(
    params: Iterable[nn.Parameter],
    settings: OptimSettings,
    batch_size: int = 256,
    betas: tuple[float, float] | None = None,
    fused: bool = True,
) -> Optimizer:
    """The optimiser of `settings`. Vectors (biases, normalisation weights) are not decayed, nor adapted by LARS."""
    trained = [p for p in params if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = peak_rate(settings, batch_size)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas or (0.9, settings.beta2), fused=fused)
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
        for parameter in trained if settings.momentum else []:  # a first step that is skipped would leave them as found
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    from timm.optim import Lars

    # η and the clipped trust ratio as in FACTS' picture recipes (solo-learn); matrices are adapted without decay too
    for group in groups:
        group["always_adapt"] = group["params"][0].ndim > 1
    return Lars(groups, lr=rate, momentum=settings.momentum, trust_coeff=0.02, trust_clip=True)


def warmup_steps(settings: OptimSettings, steps: int) -> int:
    """Steps of warm-up: `warmup` is a share of the training below 1, else a number of steps."""
    return round(settings.warmup * steps if settings.warmup < 1 else min(settings.warmup, steps))


def cosine(step: int, steps: int, warmup: int = 0) -> float:
    """Factor of the peak rate at `step` (from 0): linear warm-up, half a cosine to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def rate_factor(settings: OptimSettings, step: int, steps: int) -> float:
    """Factor of the peak rate at `step`, as `schedule` says."""
    warmup = warmup_steps(settings, steps)
    if settings.schedule == "cosine" or step < warmup:
        return cosine(step, steps, warmup)
    return 1.0 if settings.schedule == "constant" else (steps - step) / max(1, steps - warmup)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_decay(optimizer: Optimizer, settings: OptimSettings, step: int, steps: int) -> None:
    """Move the weight decay of matrices along its cosine (Caron et al. 2021, DINO, §3.2), where it has an end."""
    if settings.weight_decay_end is None:
        return
    start, end = settings.weight_decay, settings.weight_decay_end
    for group in optimizer.param_groups:
        if group["params"][0].ndim > 1:
            group["weight_decay"] = end + (start - end) * cosine(step, steps)
