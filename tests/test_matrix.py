"""The contract, cell by cell: every objective on every kind of data learns, resumes exactly and does not collapse, or
refuses with the need that is missing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import BATCH, SOURCES, assemble, encoders, steps_of
from processes import average_gradients, together
from torch import Tensor

from labelfree import registry
from labelfree.data.draw import Draw
from labelfree.distributed import all_sum, world_size
from labelfree.errors import Refusal
from labelfree.training.batchnorm import synchronise
from labelfree.training.checkpoint import load_state, save_state
from labelfree.training.health import feature_health
from labelfree.training.loop import Training

CELLS = [
    pytest.param(kind, method, encoder, id=f"{kind}-{method}-{encoder}")
    for kind in registry.modalities()
    for method in registry.objectives()
    for encoder in encoders(kind)
]
RECIPES = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for name, (_, recipe) in registry.recipes().items()
    for kind in recipe.modalities or registry.modalities()
]
#: What must work, whatever the needs say.
PROMISED = {
    "image": {"simclr", "vicreg", "byol", "masked", "pretext"},
    "series": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext", "ts2vec"},
    "text": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext"},
}
#: Networks that cannot do what a method needs: no tokens to hide in a convolution, no causal order in it or in BERT.
CANNOT = {
    "timm:test_resnet": {"masked", "next", "cpc"},
    "hf:bert-tiny": {"next", "cpc"},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: make(folder) for kind, make in SOURCES.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def advance(training: Training, start: int, stop: int) -> None:
    for step, batch in zip(range(start, stop), training.loader.steps(start, stop), strict=True):
        training.step(step, batch)


@torch.no_grad()
def loss_on_fixed_draws(training: Training) -> float:
    """Mean loss over an epoch's batches, the samples and draws being the same at every call; leaves no trace."""
    objective = copy.deepcopy(training.objective)
    count = training.loader.order.steps_per_epoch
    losses = [
        objective.loss(batch, Draw.start(1, 0, step, batch.index)).loss
        for step, batch in enumerate(training.loader.steps(0, count))
    ]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def health_of_features(training: Training) -> dict[str, float]:
    encoder = copy.deepcopy(training.objective.product).eval()
    modality = training.objective.modality
    batches = training.loader.steps(0, training.loader.order.steps_per_epoch)
    pooled = torch.cat([encoder(modality.prepare(batch)).pooled for batch in batches])
    return {key: float(value) for key, value in feature_health(pooled).items()}


def check_cell(source: Path, kind: str, method: str, encoder: str, folder: Path) -> None:
    """Train; the loss falls, the features stay spread, and resumed on the way it ends in the same bits."""
    training = assemble(source, kind, method, encoder)
    before = loss_on_fixed_draws(training)
    steps = steps_of(method)
    stop = steps - 5
    advance(training, 0, stop)
    save_state(folder, stop, training.objective, training.optimizer)
    advance(training, stop, steps)
    after = loss_on_fixed_draws(training)
    assert after < 0.99 * before, f"the loss went from {before:.4f} to {after:.4f}"
    health = health_of_features(training)
    assert health["feature_std"] > 0.001, health
    assert health["effective_rank"] > 2, health

    again = assemble(source, kind, method, encoder)
    start = load_state(folder, again.objective, again.optimizer)
    advance(again, start, steps)
    expected = training.objective.state_dict()
    for name, value in again.objective.state_dict().items():
        assert torch.equal(value, expected[name]), f"{name} differs after resuming"


def fits(kind: str, method: str, encoder: str) -> bool:
    gaps = registry.missing(registry.objectives()[method], registry.modalities()[kind])
    return not gaps and method not in CANNOT.get(encoder, ())


@pytest.mark.parametrize(("kind", "method", "encoder"), CELLS)
def test_cell_learns_and_resumes_or_refuses(
    kind: str, method: str, encoder: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    objective = registry.objectives()[method]
    if gaps := registry.missing(objective, registry.modalities()[kind]):
        assert method not in PROMISED.get(kind, ())
        with pytest.raises(Refusal, match="What fits: ") as refusal:
            assemble(sources[kind], kind, method, encoder)
        assert all(gap in str(refusal.value) for gap in gaps)
        return
    if method in CANNOT.get(encoder, ()):
        with pytest.raises(Refusal) as refusal:
            assemble(sources[kind], kind, method, encoder)
        assert refusal.value.remedy, "a refusal says what to use instead"
        return
    check_cell(sources[kind], kind, method, encoder, tmp_path)


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_recipe_takes_a_step(kind: str, name: str, sources: dict[str, Path]) -> None:
    training = assemble(sources[kind], kind, name, "transformer:nano")
    advance(training, 0, 1)
    assert all(value.isfinite().all() for value in training.objective.state_dict().values())


def test_every_modality_and_promise_is_in_the_matrix() -> None:
    assert set(registry.modalities()) <= set(SOURCES), "give the new modality a tiny source in cells.py"
    assert set().union(*PROMISED.values()) <= set(registry.objectives())


def first_step(rank: int, sources: dict[str, Path], cells: list[tuple[str, str, str]]) -> dict[str, Tensor]:
    """Loss, gradients and statistics of the first step of each cell, as all processes together see them."""
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for kind, method, encoder in cells:
        training = assemble(sources[kind], kind, method, encoder)
        objective = synchronise(training.objective) if world_size() > 1 else training.objective
        batch = next(iter(training.loader.steps(0, 1)))
        assert len(batch) == BATCH // world_size()
        loss = objective(batch, Draw.start(0, 0, 0, batch.index)).loss
        loss.backward()
        if world_size() > 1:
            average_gradients(objective)
        cell = f"{kind} {method} {encoder}"
        found[f"{cell}: loss"] = all_sum(loss.detach()) / world_size()
        found |= {f"{cell}: {key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
        found |= {f"{cell}: {key}": value.clone() for key, value in objective.named_buffers()}
    return found


def test_two_processes_give_the_loss_and_gradient_of_one(sources: dict[str, Path]) -> None:
    cells = [cell.values for cell in CELLS if fits(*cell.values)]
    one = first_step(0, sources, cells)
    for other in together(first_step, sources, cells):
        assert other.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
