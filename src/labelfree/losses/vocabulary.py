"""Cross-entropy of a last layer over a vocabulary: loss and gradient in one sweep.

The probabilities of all V ids for all M tokens are many times what the rest of a small network holds. Here they are
made for some tokens at a time, turned into the gradient in place and forgotten, so that none of them waits for the
backward pass or is made twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labelfree.distributed import all_sum, world_size

#: Probabilities that are held at once: on a CPU what stays near its caches, elsewhere more, for larger products.
MOST, ELSEWHERE = 1 << 22, 1 << 25


def vocabulary_loss(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean of -log softmax(Wx + b)[target] over the tokens of the global batch that are `counted`.

    Args:
        x: (M, D) features; in autocast the products are made in its precision.
        weight, bias: (V, D), (V,) of the last layer.
        target: (M,) int64 ids.
        counted: (M,) bool, or how much each token counts.

    Returns:
        Scalar float32: this process's part, whose mean over processes is the loss of the global batch.
    """
    share = counted.float()
    share = share / (all_sum(share.sum()) / world_size()).clamp_min(torch.finfo(share.dtype).tiny)
    device = x.device.type
    quick = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _Sweep.apply(x, weight, bias, target, share, quick, torch.is_grad_enabled())
    return loss


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, weight, bias, target, share, quick, learn = given
        inputs, matrix, offset = x.to(quick), weight.to(quick), bias.to(quick)
        total = share.new_zeros(())
        grads = [torch.zeros_like(tensor) for tensor in (x, weight, bias)] if learn else []
        size = max(1, (MOST if x.device.type == "cpu" else ELSEWHERE) // len(weight))
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            pull, loss = _pull(torch.addmm(offset, inputs[rows], matrix.t()).float(), target[rows], share[rows])
            total += loss
            if learn:
                grads[2] += pull.sum(dim=0)
                pull = pull.to(quick)
                grads[1] += pull.t() @ inputs[rows]
                grads[0][rows] = (pull @ matrix).to(x.dtype)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors), None, None, None, None


def _pull(logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """(m, V) logits → the loss's gradient by them, in their place, and the loss."""
    wanted = target[:, None]
    right, most = logits.gather(1, wanted), logits.amax(dim=1, keepdim=True)
    chances = logits.sub_(most).exp_()
    total = chances.sum(dim=1, keepdim=True)
    loss = (total.log() + most - right)[:, 0] @ share
    pull = chances.mul_(share[:, None] / total)
    return pull.scatter_add_(1, wanted, -share[:, None]), loss
