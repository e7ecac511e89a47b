"""Objectives on two views: what the teacher does, what the views are, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cells import assemble, series
from torch.nn import functional as F

from labelfree import registry
from labelfree.data.draw import Draw
from labelfree.data.partners import PARTNER
from labelfree.errors import LabelfreeError
from labelfree.losses.coding_rate import coding_rate
from labelfree.losses.contrastive import nt_xent
from labelfree.objectives._heads import mlp
from labelfree.objectives._teacher import cosine_between, follow, frozen_copy
from labelfree.objectives._views import ViewSettings, halves, two_views
from labelfree.objectives.byol import BYOL
from labelfree.objectives.emp import EMP, EMPSettings
from labelfree.objectives.simclr import SimCLR, SimCLRSettings
from labelfree.training.loop import Training


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return series(tmp_path_factory.mktemp("series"))


def first_batch(training: Training) -> tuple:
    batch = next(iter(training.loader.steps(0, 1)))
    return batch, Draw.start(0, 0, 0, batch.index)


def test_teacher_moves_by_the_momentum_and_has_no_gradient() -> None:
    torch.manual_seed(0)
    student = torch.nn.Linear(3, 2)
    teacher = frozen_copy(student)
    start = teacher.weight.clone()
    with torch.no_grad():
        student.weight += 1
    follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, start + 0.1)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_momentum_rises_along_a_cosine_to_one() -> None:
    assert cosine_between(0.99, 0.0, 1.0) == pytest.approx(0.99)
    assert cosine_between(0.99, 0.5, 1.0) == pytest.approx(0.995)
    assert cosine_between(0.99, 1.0, 1.0) == 1.0
    assert cosine_between(0.9, 0.25, 1.0) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


@pytest.mark.parametrize("method", ["simclr", "moco", "nnclr", "instance", "swav", "deepcluster"])
def test_a_temperature_moves_along_a_cosine_and_is_what_divides(source: Path, method: str) -> None:
    def loss(share: float, **settings: float) -> float:
        torch.manual_seed(0)
        training = assemble(source, "series", method, "transformer:nano", **settings)
        batch, draw = first_batch(training)
        training.objective.temperature.move(share)
        return training.objective.loss(batch, draw).loss.item()

    moving = {"temperature": 0.5, "temperature_end": 0.1}
    for share, now in ((0.0, 0.5), (0.5, 0.3), (1.0, 0.1)):
        assert loss(share, **moving) == pytest.approx(loss(share, temperature=now))
    assert loss(1.0, **moving) != pytest.approx(loss(0.0, **moving))


@pytest.mark.parametrize("method", ["simclr", "moco", "nnclr", "instance", "swav", "deepcluster"])
def test_a_temperature_is_kept_with_the_state_and_moves_after_a_step(source: Path, method: str) -> None:
    training = assemble(source, "series", method, "transformer:nano", temperature=0.5, temperature_end=0.1)
    batch, draw = first_batch(training)
    training.objective.loss(batch, draw)
    training.objective.after_step(0.5)
    assert float(training.objective.state_dict()["temperature.now"]) == pytest.approx(0.3)


def test_byol_keeps_its_student_and_moves_its_teacher_after_the_step(source: Path) -> None:
    objective = assemble(source, "series", "byol", "transformer:nano").objective
    assert isinstance(objective, BYOL)
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter += 0.5
    before = [p.clone() for p in objective.teacher_encoder.parameters()]
    objective.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.teacher_encoder.parameters(), strict=True))
    objective.after_step(0.5)
    moved = [not torch.equal(a, b) for a, b in zip(before, objective.teacher_encoder.parameters(), strict=True)]
    assert all(moved)
    assert objective.product is objective.encoder


def test_byol_can_do_without_a_projector(source: Path) -> None:
    training = assemble(source, "series", "byol", "transformer:nano", projector=())
    batch = next(iter(training.loader.steps(0, 1)))
    training.step(0, batch)
    assert isinstance(training.objective.projector, torch.nn.Identity)


def test_byol_has_a_bounded_loss_and_no_gradient_in_its_target(source: Path) -> None:
    training = assemble(source, "series", "byol", "transformer:nano")
    batch, draw = first_batch(training)
    step = training.objective(batch, draw)
    step.loss.backward()
    assert 0 < float(step.loss.detach()) < 8
    assert all(p.grad is None for p in training.objective.teacher_projector.parameters())  # type: ignore[union-attr]
    assert any(p.grad is not None for p in training.objective.encoder.parameters())


def test_simclr_compares_two_different_views_of_each_sample(source: Path) -> None:
    training = assemble(source, "series", "simclr", "transformer:nano")
    objective, (batch, draw) = training.objective.eval(), first_batch(training)
    a = objective.modality.view(batch, draw.view(0))
    b = objective.modality.view(batch, draw.view(1))
    assert not torch.equal(a.data.nan_to_num(), b.data.nan_to_num())
    z = [objective.projector(objective.encoder(view).pooled) for view in (a, b)]  # type: ignore[operator]
    step = objective(batch, draw)
    torch.testing.assert_close(step.loss, nt_xent(*z, 0.2))
    assert step.features.shape == (len(batch), objective.encoder.dim)
    assert not step.features.requires_grad


def test_samples_of_one_case_are_positives(source: Path) -> None:
    training = assemble(source, "series", "simclr", "transformer:nano")
    settings = SimCLRSettings(projector=(16,), case="patient")
    objective = SimCLR(training.objective.encoder, training.objective.modality, settings).eval()
    batch, draw = first_batch(training)
    group = torch.zeros_like(batch.index)
    together = objective(batch.with_(group=group), draw).loss
    views = [objective.modality.view(batch, draw.view(number)) for number in (0, 1)]
    z = [objective.projector(objective.encoder(view).pooled) for view in views]
    torch.testing.assert_close(together, nt_xent(*z, settings.temperature, group))
    assert float(together.detach()) >= math.log(2 * len(batch) - 1), "all are positives: none can be sure of one"


@pytest.mark.parametrize("method", ["moco", "nnclr", "triplet"])
def test_samples_of_one_case_are_no_negatives(source: Path, method: str) -> None:
    training = assemble(source, "series", method, "transformer:nano")
    objective, (batch, draw) = training.objective, first_batch(training)
    objective.settings = objective.settings.model_copy(update={"case": "patient"})
    nobody, one = (batch.with_(group=torch.full_like(batch.index, number)) for number in (-1, 0))
    with torch.no_grad():
        alone, together = objective(nobody, draw).loss, objective(one, draw).loss
        assert objective(batch, draw).loss == alone, "without a case everyone is a negative"
    assert together < alone
    if method == "moco":
        assert float(together) == pytest.approx(0, abs=1e-4), "there is nobody to be told from"
        objective(one, draw)
        objective.after_step(0.1)
        assert objective.queue.owner.unique().tolist() == [0], "the queue says whose case a key is of"


def test_the_second_view_is_of_the_partner(source: Path) -> None:
    training = assemble(source, "series", "simclr", "transformer:nano")
    modality = training.objective.modality
    batch, draw = first_batch(training)
    other = batch[torch.arange(len(batch)).flip(0)]
    paired = batch.with_(parts={PARTNER: other})
    views = two_views(modality, paired, draw, ViewSettings(case="patient"))
    assert not views.parts
    alone = halves(two_views(modality, paired, draw, ViewSettings()).data)[1]
    torch.testing.assert_close(alone, modality.view(batch, draw.view(1)).data, equal_nan=True, msg="nobody asked")
    first, second = halves(views.data)
    torch.testing.assert_close(first, modality.view(batch, draw.view(0)).data, equal_nan=True)
    torch.testing.assert_close(second, modality.view(other, draw.view(1)).data, equal_nan=True)


def test_one_view_and_the_sample_must_be_of_one_size(source: Path) -> None:
    training = assemble(source, "series", "simclr", "transformer:nano")
    modality = training.objective.modality
    batch, draw = first_batch(training)
    halved = {"contrast": 2, "none": 1}
    wrong = SimpleNamespace(view=lambda batch, draw, policy: batch.with_(data=batch.data[:, :: halved[policy]]))
    with pytest.raises(LabelfreeError, match="views=one"):
        two_views(wrong, batch, draw, ViewSettings(views="one"))
    first, second = halves(two_views(modality, batch, draw, ViewSettings(views="one")).data)
    torch.testing.assert_close(first, modality.view(batch, draw.view(0)).data, equal_nan=True)
    torch.testing.assert_close(second, modality.view(batch, draw.view(1), "none").data, equal_nan=True)


def test_every_other_crop_is_of_the_partner(source: Path) -> None:
    training = assemble(source, "series", "simclr", "transformer:nano")
    encoder, modality = training.objective.encoder, training.objective.modality
    objective = EMP(encoder, modality, EMPSettings(crops=3, projector=(16,), case="patient")).eval()
    batch, draw = first_batch(training)
    other = batch[torch.arange(len(batch)).flip(0)]
    crops = [modality.view(seen, draw.view(number)) for number, seen in enumerate((batch, other, batch))]
    z = torch.stack([F.normalize(objective.projector(encoder(crop).pooled), dim=1) for crop in crops])
    agreement = F.cosine_similarity(z, z.mean(dim=0, keepdim=True), dim=2).mean()
    expected = 200 * (1 - agreement) - torch.stack([coding_rate(crop, 0.2) for crop in z]).mean()
    step = objective(batch.with_(parts={PARTNER: other}), draw)
    torch.testing.assert_close(step.loss, expected)


def test_heads_have_the_widths_that_settings_say() -> None:
    head = mlp(8, 32, 16)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(32, 8), (16, 32)]
    assert head[0].bias is None, "a bias before a normalisation does nothing"
    assert len(mlp(8, 16)) == 1


def test_settings_name_the_key_and_what_is_allowed() -> None:
    with pytest.raises(LabelfreeError, match=r"temperature.*greater than 0.*-1"):
        SimCLRSettings.read({"temperature": -1}, "simclr")
    assert SimCLRSettings.read({"projector": "64,32"}, "simclr").projector == (64, 32)


def test_graphcl_leaves_the_positive_out_of_the_denominator() -> None:
    """Eq. 3 of its paper sums over the other graphs alone."""
    _, recipe = registry.method("graphcl")
    assert recipe is not None
    assert SimCLRSettings.read(recipe.settings, "graphcl").decoupled
