"""Multinomial logistic regression for many penalties and folds at once: each iteration is one matrix product.

Features may be dense arrays or scipy sparse matrices. With fewer samples than features the problem is rotated into the
samples' span, where it is the same problem with fewer unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Products = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]

#: Unknowns that are solved for at once: more problems than that take turns, since L-BFGS remembers many copies.
UNKNOWNS = 4_000_000


@dataclass(frozen=True)
class Scaler:
    """Brings features to one scale, so that one grid of penalties fits all: rows have a mean square norm of 1.

    Dense features are centred and divided by their standard deviations; sparse ones are only multiplied by a number.
    """

    mean: np.ndarray | float
    factor: np.ndarray | float

    @classmethod
    def fit(cls, x: Any) -> Scaler:
        """Statistics of (N, D) training features."""
        if not isinstance(x, np.ndarray):
            return cls(0.0, float(1 / np.sqrt(max(x.multiply(x).sum() / x.shape[0], 1e-30))))
        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        alive = std > 1e-6 * (np.abs(mean) + std.max() + 1e-30)
        factor = np.where(alive, 1 / np.where(alive, std, 1.0), 0.0) / np.sqrt(max(1, alive.sum()))
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def __call__(self, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return (x.astype(np.float32) - self.mean) * self.factor
        return (x * self.factor).astype(np.float32).tocsr()


def span(x: Any, others: list[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Coordinates of x (n, D) and of others in an orthonormal basis of x's rows, which keeps inner products with x."""
    gram = x @ x.T
    gram = np.asarray(gram.todense() if not isinstance(gram, np.ndarray) else gram, dtype=np.float64)
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 1e-30) * 1e-7
    root = np.sqrt(values[kept])
    back = vectors[:, kept] / root
    rotated = [np.asarray(_dense(other @ x.T) @ back, dtype=np.float32) for other in others]
    return (vectors[:, kept] * root).astype(np.float32), rotated


def _dense(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.toarray()


def fit_logistic(
    x: Any, y: np.ndarray, classes: int, penalties: np.ndarray, weights: np.ndarray, iterations: int = 100
) -> np.ndarray:
    """Solve P problems min mean_w CE(x W + b, y) + λ/2 ‖W‖², one for each penalty λ and column of sample weights.

    Args:
        x: (N, D) scaled features.
        y: (N,) classes.
        classes: C.
        penalties: (P,) λ of each problem; the bias is not penalised.
        weights: (N, P) weight of each sample in each problem; zero leaves it out.
        iterations: most iterations.

    Returns:
        (D + 1, P, C): weights, and in the last row biases.
    """
    at_once = max(1, UNKNOWNS // ((x.shape[1] + 1) * classes))
    parts = [slice(i, i + at_once) for i in range(0, len(penalties), at_once)]
    products = _products(x)
    solved = [_solve(products, y, classes, penalties[part], weights[:, part], iterations) for part in parts]
    return np.concatenate(solved, axis=1)


def _solve(
    products: Products, y: np.ndarray, classes: int, penalties: np.ndarray, weights: np.ndarray, iterations: int
) -> np.ndarray:
    times, transposed, width = products
    inner, target = width * classes, torch.as_tensor(y)
    share = torch.as_tensor(weights / weights.sum(axis=0), dtype=torch.float32)[:, :, None]
    penalty = torch.as_tensor(penalties, dtype=torch.float32)

    def objective(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        count, weight, decay = len(rows), share[:, rows], penalty[rows]
        matrices, biases = w[:, :inner], w[:, inner:]
        columns = matrices.view(count, width, classes).transpose(0, 1).reshape(width, -1)
        logits = times(columns).view(-1, count, classes) + biases
        logits = logits - logits.amax(dim=2, keepdim=True)
        odds = logits.exp()
        total = odds.sum(dim=2, keepdim=True)
        truth = target[:, None, None].expand(-1, count, 1)
        loss = (weight * (total.log() - logits.gather(2, truth))).sum(dim=(0, 2))
        loss = loss + decay * _dot(matrices, matrices) / 2
        slope = weight * odds / total
        slope.scatter_add_(2, truth, -weight)
        gradient = transposed(slope.flatten(1)).view(width, count, classes).transpose(0, 1).flatten(1)
        return loss, torch.cat([gradient + decay[:, None] * matrices, slope.sum(dim=0)], dim=1)

    found = minimise(objective, torch.zeros(len(penalties), inner + classes), iterations)
    return found.view(-1, width + 1, classes).transpose(0, 1).numpy()


def _products(x: Any) -> Products:
    """Multiplication by x and by its transpose, and the width of x."""
    if isinstance(x, np.ndarray):
        dense = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        return lambda w: dense @ w, lambda g: dense.T @ g, x.shape[1]
    rows, columns = x.tocsr(), x.T.tocsr()
    return lambda w: torch.from_numpy(rows @ w.numpy()), lambda g: torch.from_numpy(columns @ g.numpy()), x.shape[1]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(P, K), (P, K) → (P,) inner product of each problem."""
    return (a * b).sum(dim=1)


def minimise(objective: Objective, w: Tensor, iterations: int, memory: int = 8, tolerance: float = 1e-5) -> Tensor:
    """L-BFGS (Nocedal & Wright, algorithm 7.5) on P independent convex problems at once, each with its own step sizes.

    Args:
        objective: (P, K), (P,) → losses (P,) and gradients (P, K) of the problems with these numbers.
        w: where to start.
        iterations: most iterations.
        memory: pairs that are remembered.
        tolerance: a problem is done when a step lowers its loss by less than this share.
    """
    found, rows = w.clone(), torch.arange(len(w))
    loss, gradient = objective(w, rows)
    active = torch.ones_like(loss, dtype=torch.bool)
    pairs: list[tuple[Tensor, ...]] = []
    for _ in range(iterations):
        direction = _direction(gradient, pairs)
        if not pairs:
            direction = direction / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
        step = _line_search(objective, rows, w, direction, loss, _dot(direction, gradient), active)
        if step is None:
            break
        moved, new_loss, new_gradient = step
        pairs = [*pairs, _pair(moved - w, new_gradient - gradient)][-memory:]
        active = active & (loss - new_loss > tolerance * loss.abs().clamp_min(1e-3))
        w, loss, gradient = moved, new_loss, new_gradient
        found[rows] = w
        if not active.any():
            break
        if 2 * active.sum() <= len(rows):  # the others need no more work
            rows, w, loss, gradient = rows[active], w[active], loss[active], gradient[active]
            pairs = [tuple(each[active] for each in pair) for pair in pairs]
            active = active[active]
    return found


def _pair(s: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """A step, the change of the gradient, and one over their inner product; 0 without positive curvature."""
    curvature = _dot(s, y)
    return s, y, torch.where(curvature > 1e-12, 1 / curvature.clamp_min(1e-12), 0.0)


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, ...]]) -> Tensor:
    """The two-loop recursion; a pair without positive curvature has weight 0 and changes nothing."""
    q = gradient
    alphas = []
    for s, y, rho in reversed(pairs):
        alpha = rho * _dot(s, q)
        q = q - alpha[:, None] * y
        alphas.append(alpha)
    if pairs:
        s, y, rho = pairs[-1]
        scale = torch.where(rho > 0, _dot(s, y) / _dot(y, y).clamp_min(1e-20), 1.0)
        q = q * scale[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * _dot(y, q))[:, None] * s
    return -q


def _line_search(
    objective: Objective, rows: Tensor, w: Tensor, direction: Tensor, loss: Tensor, slope: Tensor, active: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Halve the step of each problem until it lowers the loss enough (Armijo); None where no active problem can."""
    size = torch.where(active & (slope < 0), 1.0, 0.0)
    for _ in range(20):
        moved = w + size[:, None] * direction
        new_loss, gradient = objective(moved, rows)
        poor = (new_loss > loss + 1e-4 * size * slope) & (size > 0)
        if not poor.any():
            return (moved, new_loss, gradient) if (size > 0).any() else None
        size = torch.where(poor, torch.where(size > 1e-5, size / 2, 0.0), size)
    size = torch.where(poor, 0.0, size)
    moved = w + size[:, None] * direction
    return (moved, *objective(moved, rows)) if (size > 0).any() else None
