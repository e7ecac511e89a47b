"""ELECTRA: only hidden words are replaced, right guesses are originals, detection does not teach the generator."""

from __future__ import annotations

import pytest
import torch
from cells import assemble, texts

from labelfree.data.draw import Draw
from labelfree.objectives.electra import Electra
from labelfree.training.loop import Training


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return assemble(texts(tmp_path_factory.mktemp("source")), "text", "electra", "transformer:nano")


def test_only_hidden_words_are_replaced_and_mostly_by_others(training: Training) -> None:
    objective = training.objective
    assert isinstance(objective, Electra)
    batch = next(iter(training.loader.steps(0, 1)))
    draw = Draw.start(0, 0, 0, batch.index)
    view = objective.modality.view(batch, draw, "none")
    mask = objective.modality.sample_mask(view, draw, 0.15)
    _, replaced = objective._replaced(view, draw)
    other = replaced.data != view.data
    assert not (other & ~mask).any()
    assert other[mask].float().mean() > 0.8, "an untrained generator is rarely right"
    step = objective(batch, draw)
    torch.testing.assert_close(step.logs["replaced"], other.float().mean())
    torch.testing.assert_close(step.loss.detach(), step.logs["generation"] + 50 * step.logs["detection"])


def test_a_generator_that_is_right_leaves_nothing_to_detect(training: Training) -> None:
    objective = training.objective
    assert isinstance(objective, Electra)
    batch = next(iter(training.loader.steps(0, 1)))
    draw = Draw.start(0, 0, 0, batch.index)
    view = objective.modality.view(batch, draw, "none")
    truth = torch.nn.functional.one_hot(view.data, objective.modality.target_dim).float()

    class Right(torch.nn.Module):
        def forward(self, *_: object) -> object:
            return type("Found", (), {"tokens": truth * 100})

    generator, fill = objective.generator, objective.fill
    objective.generator, objective.fill = Right(), torch.nn.Identity()  # type: ignore[assignment]
    _, same = objective._replaced(view, draw)
    objective.generator, objective.fill = generator, fill
    assert torch.equal(same.data, view.data)


def test_detection_does_not_teach_the_generator(training: Training) -> None:
    objective = training.objective
    assert isinstance(objective, Electra)
    batch = next(iter(training.loader.steps(0, 1)))
    draw = Draw.start(0, 0, 0, batch.index)
    step = objective(batch, draw)
    whole = torch.autograd.grad(step.loss, objective.generator.mask_token)[0]  # type: ignore[arg-type]
    guessed, _ = objective._replaced(objective.modality.view(batch, draw, "none"), draw)
    torch.testing.assert_close(whole, torch.autograd.grad(guessed, objective.generator.mask_token)[0])  # type: ignore[arg-type]
