"""TS2Vec as an objective: what it hides, averages and keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelfree.data.batch import Batch
from labelfree.data.dataset import Description
from labelfree.data.draw import Draw
from labelfree.encoders.dilated import Dilated
from labelfree.modalities.series import Series
from labelfree.objectives.ts2vec import TS2Vec, TS2VecSettings


def setting(**own: object) -> tuple[TS2Vec, Batch]:
    torch.manual_seed(0)
    modality = Series()
    time = np.linspace(0, 6, 40)
    rates = np.random.default_rng(0).uniform(1, 4, (8, 1))
    dataset = modality.open(np.sin(rates * time) + 0.1 * time)
    modality.fit(dataset)
    objective = TS2Vec(Dilated(1, 1, 8, 4, 12), modality, TS2VecSettings.read(own, "ts2vec"))
    return objective, modality.collate(dataset.read(range(8)))  # type: ignore[arg-type]


def test_the_loss_is_a_function_of_batch_and_draw() -> None:
    objective, batch = setting()
    losses = [objective(batch, Draw.start(0, 0, step, batch.index)).loss.item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_it_learns_and_keeps_the_mean_of_the_weights() -> None:
    objective, batch = setting()

    def usual_loss() -> float:
        with torch.no_grad():
            return float(np.mean([objective(batch, Draw.start(1, 0, s, batch.index)).loss.item() for s in range(20)]))

    before, seen = usual_loss(), []
    optimizer = torch.optim.AdamW(objective.encoder.parameters(), lr=5e-3)
    for step in range(40):
        optimizer.zero_grad()
        objective(batch, Draw.start(0, step, step, batch.index)).loss.backward()
        optimizer.step()
        objective.after_step((step + 1) / 40)
        seen.append(objective.encoder.project.weight.detach().clone())
    assert usual_loss() < 0.9 * before
    kept = objective.product
    assert kept is not objective.encoder
    torch.testing.assert_close(kept.project.weight, torch.stack(seen).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in kept.parameters())


def test_resuming_from_the_state_continues_the_mean() -> None:
    objective, _ = setting()
    objective.after_step(0.1)
    other, _ = setting()
    other.load_state_dict(objective.state_dict())
    with torch.no_grad():
        for one in (objective, other):
            one.encoder.project.weight.fill_(3.0)
            one.after_step(0.2)
    assert torch.equal(objective.product.project.weight, other.product.project.weight)


def test_without_averaging_the_learning_encoder_is_kept() -> None:
    objective, _ = setting(average=False)
    assert objective.product is objective.encoder


@pytest.mark.parametrize(("count", "values", "steps"), [(30, 9e4, 200), (300, 2e5, 600), (8000, 8e5, 2000)])
def test_the_published_number_of_steps_is_enough_unless_there_is_more_to_see(
    count: int, values: float, steps: int
) -> None:
    assert TS2Vec.enough(Description("series", count, numbers={"values": values})) == steps
    assert TS2Vec.enough(Description("text", count)) is None


def test_hiding_tokens_changes_what_the_encoder_sees() -> None:
    draw_loss = {}
    for mask in (0.0, 0.5):
        objective, batch = setting(mask=mask)
        objective.eval()
        draw_loss[mask] = objective(batch, Draw.start(0, 0, 0, batch.index)).loss.item()
    assert draw_loss[0.0] != draw_loss[0.5]
