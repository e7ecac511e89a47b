"""Batch normalisation over the batches of all processes, on any device (torch's own is for GPUs only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelfree.distributed import all_sum, world_size
from labelfree.losses.precision import full_precision


class SynchronisedBatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015) whose statistics are those of the global batch.

    Output, gradients and running statistics are what one process would have for all samples together. It takes (B, C)
    and (B, C, ...), and holds the very parameters and buffers of the layer that it replaces, under the same names.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        for name in (*self._parameters, *self._buffers):
            setattr(self, name, getattr(layer, name))
        # Libraries join activation and dropout to the layer (timm's BatchNormAct2d); they hold no parameters.
        self.after = nn.Sequential(
            *(part for key in ("drop", "act") if (part := getattr(layer, key, None)) is not None)
        )
        self.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        statistics_of_batch = self.training or self.running_mean is None
        if not statistics_of_batch or world_size() == 1:
            return self.after(super().forward(input))
        return self.after(self._normalise(input).to(input.dtype))

    def _normalise(self, x: Tensor) -> Tensor:
        mean, variance, count = _moments(x)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                # Without a momentum the running statistics are plain averages of all batches.
                step = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, step)
                self.running_var.lerp_(variance * count / (count - 1), step)
        channels = (1, -1, *(1,) * (x.dim() - 2))
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (x - mean.view(channels)) * scale.view(channels)
        return (x - mean.view(channels)) * (scale * self.weight).view(channels) + self.bias.view(channels)


@full_precision
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values a channel, over all processes.

    Deviations are summed after the mean is known: the difference of mean square and squared mean loses its digits.
    """
    others = [0, *range(2, x.dim())]
    count = all_sum(x.new_full((), x.numel() / x.shape[1]))
    mean = all_sum(x.sum(others)) / count
    centred = x - mean.view(1, -1, *(1,) * (x.dim() - 2))
    return mean, all_sum(centred.square().sum(others)) / count, count


def synchronise(module: nn.Module) -> nn.Module:
    """Make every batch normalisation below `module` (or itself) one over all processes, in place where it can be."""
    if isinstance(module, SynchronisedBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child))
    return module
