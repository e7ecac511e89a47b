"""Objectives on clusters and distributions: whose labels are used when, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import assemble, pictures
from test_views_objectives import first_batch

from labelfree.data.draw import Draw
from labelfree.objectives._views import halves
from labelfree.objectives.deepcluster import DeepCluster
from labelfree.objectives.lejepa import LeJEPA
from labelfree.objectives.swav import SwAV, SwAVSettings


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def test_swavs_prototypes_wait_and_its_queue_joins_later(source: Path) -> None:
    training = assemble(source, "image", "swav", "transformer:nano")
    settings = SwAVSettings(projector=(16,), prototypes=8, queue=20, queue_start=0.5, frozen_prototypes=0.2)
    objective = SwAV(training.objective.encoder, training.objective.modality, settings)
    batch, draw = first_batch(training)
    objective(batch, draw).loss.backward()
    assert objective.prototypes.grad is not None
    assert not objective.prototypes.grad.any(), "frozen at the start"
    objective.after_step(0.3)
    place = torch.nn.functional.normalize(objective.prototypes.detach(), dim=1)
    views = halves(torch.nn.functional.normalize(torch.randn(32, 16), dim=1))
    alone = objective._codes(views, place)
    objective.after_step(0.6)
    joined = objective._codes(views, place)
    torch.testing.assert_close(alone.sum(dim=1), torch.ones(32))
    assert not torch.allclose(alone[:16], joined[:16])
    objective(batch, draw).loss.backward()
    assert objective.prototypes.grad.any()


def test_deepcluster_clusters_what_it_has_seen_and_predicts_that_in_the_next_pass(source: Path) -> None:
    training = assemble(source, "image", "deepcluster", "transformer:nano")
    objective = training.objective
    assert isinstance(objective, DeepCluster)
    steps = training.loader.order.steps_per_epoch
    for step, batch in enumerate(training.loader.steps(0, steps)):
        assert all(int(clustering.labels.max()) == -1 for clustering in objective._all)
        training.step(step, batch)
    assert all(int(clustering.labels.min()) >= 0 for clustering in objective._all), "all samples have labels"
    before = [clustering.labels.clone() for clustering in objective._all]
    batch, draw = first_batch(training)
    step = objective(batch, draw)
    for clustering in objective._all:
        clustering.labels.copy_(clustering.labels.roll(1))
    assert not torch.equal(objective(batch, draw).loss, step.loss), "labels of the memory are what is predicted"
    for clustering, labels in zip(objective._all, before, strict=True):
        clustering.labels.copy_(labels)
    objective.after_epoch()
    assert sum(len(clustering.labels.unique()) > 1 for clustering in objective._all) == len(before)


def test_a_sample_that_was_in_no_clustering_is_asked_for_nothing(source: Path) -> None:
    training = assemble(source, "image", "deepcluster", "transformer:nano")
    objective = training.objective
    assert isinstance(objective, DeepCluster)
    batch, draw = first_batch(training)
    objective(batch, draw)
    objective.after_step(0.1)
    objective.after_epoch()
    for clustering in objective._all:
        clustering.labels.fill_(-1)
        clustering.labels[batch.index[:2]] = 0
    objective.zero_grad()
    z = torch.nn.functional.normalize(torch.randn(2, len(batch), 32), dim=2).requires_grad_()
    objective._predicted(z, objective._all[0], batch.index).backward()
    assert z.grad is not None
    assert z.grad[:, :2].any()
    assert not z.grad[:, 2:].any()


def test_lejepas_directions_are_new_in_each_step_and_of_unit_length(source: Path) -> None:
    training = assemble(source, "image", "lejepa", "transformer:nano")
    objective = training.objective
    assert isinstance(objective, LeJEPA)
    batch, draw = first_batch(training)
    one, other = objective._directions(draw), objective._directions(Draw.start(0, 0, 1, batch.index))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(one.shape[1]))
    assert not torch.equal(one, other)
    share = Draw.start(0, 0, 0, batch.index[8:])
    assert torch.equal(objective._directions(share), one), "every process draws the same"
