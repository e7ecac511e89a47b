"""The contract, cell by cell: every objective on every kind of data learns, resumes exactly and does not collapse, or
refuses with the need that is missing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import EMPTY, SOURCES, assemble, cannot, every_cell, make_sources, own, steps_of, telling_cells

from labelfree import registry
from labelfree.data.draw import Draw
from labelfree.errors import Refusal
from labelfree.training.checkpoint import load_state, save_state
from labelfree.training.health import feature_health
from labelfree.training.loop import Training

CELLS = [pytest.param(*cell, id="-".join(cell)) for cell in every_cell()]
RECIPES = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for name, (cls, recipe) in registry.recipes().items()
    for kind in recipe.modalities or own(registry.modalities())
    if cls.__module__.startswith("labelfree.")
]
#: What must work, whatever the needs say.
PROMISED = {
    "events": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext"},
    "bytes": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext"},
    "table": {"simclr", "vicreg", "byol", "masked"},
    "audio": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext", "ts2vec", "wav2vec2"},
    "pair": {"clip", "siglip", "simclr", "vicreg", "byol"},
    "graph": {"simclr", "vicreg", "byol", "masked", "dgi", "link"},
    "image": {"simclr", "vicreg", "byol", "masked", "pretext"},
    "series": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext", "ts2vec"},
    "text": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext"},
    "video": {"simclr", "vicreg", "byol", "masked", "next", "cpc", "pretext"},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


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
    """Mean loss of three batches, the samples and draws being the same at every call; leaves no trace."""
    objective = copy.deepcopy(training.objective)
    losses = [
        objective.loss(batch, Draw.start(1, 0, step, batch.index)).loss
        for step, batch in enumerate(training.loader.steps(0, 3))
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
    first = EMPTY.get(method, 0)
    advance(training, 0, first)
    before = loss_on_fixed_draws(training)
    steps = steps_of(kind, method, encoder)
    stop = steps - 3
    advance(training, first, stop)
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
    if cannot(kind, method, encoder):
        with pytest.raises(Refusal) as refusal:
            assemble(sources[kind], kind, method, encoder)
        assert refusal.value.remedy, "a refusal says what to use instead"
        return
    check_cell(sources[kind], kind, method, encoder, tmp_path)


@pytest.mark.parametrize(("kind", "method", "encoder"), telling_cells())
def test_cell_takes_a_step_in_mixed_precision(kind: str, method: str, encoder: str, sources: dict[str, Path]) -> None:
    training = assemble(sources[kind], kind, method, encoder, precision="bf16")
    advance(training, 0, 1)
    assert int(training.skipped) == 0
    assert all(value.isfinite().all() for value in training.objective.state_dict().values())


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_recipe_takes_a_step(kind: str, name: str, sources: dict[str, Path]) -> None:
    if "case" in registry.recipes()[name][1].settings:
        with pytest.raises(Refusal, match="no column 'case'"):
            assemble(sources[kind], kind, name, "transformer:pico")
        return
    training = assemble(sources[kind], kind, name, "transformer:pico")
    advance(training, 0, 1)
    assert all(value.isfinite().all() for value in training.objective.state_dict().values())


def test_every_modality_and_promise_is_in_the_matrix() -> None:
    assert set(own(registry.modalities())) <= set(SOURCES), "give the new modality a tiny source in cells.py"
    assert set().union(*PROMISED.values()) <= set(registry.objectives())
