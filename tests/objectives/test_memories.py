"""What objectives remember: queues in the order of the global batch, a vector for each sample; who is a negative."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cells import assemble, events, pictures
from cells import rows as table
from processes import together
from torch import Tensor

from labelfree.data.draw import Draw
from labelfree.distributed import world_size
from labelfree.objectives._memory import Bank, Queue
from labelfree.objectives.instance import Instance
from labelfree.objectives.moco import MoCo, MoCoSettings
from labelfree.objectives.nnclr import NNCLR


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def filled(rank: int) -> list[Tensor]:
    """A queue of 6 after three global batches of 4, and a bank of 9, as each process has them."""
    queue, bank = Queue(6, 2), Bank(9, 2)
    share = slice(rank * 4 // world_size(), (rank + 1) * 4 // world_size())
    for number in range(3):
        index = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 1, 2]])[number][share]
        x = torch.stack([index, torch.full_like(index, number)], dim=1).float()
        queue.push(x, index)
        bank.write(x, index)
    return [queue.rows, queue.owner, queue.pushed, bank.rows]


def test_a_queue_holds_the_newest_and_a_bank_one_of_each_on_any_number_of_processes() -> None:
    one = filled(0)
    rows, owner, pushed, entries = one
    assert owner.tolist() == [6, 7, 8, 0, 1, 2]
    assert int(pushed) == 12
    assert torch.equal(rows[:, 0], owner.float())
    assert entries[:, 1].tolist() == [2, 2, 2, 0, 1, 1, 1, 1, 2]
    for world in (2, 4):
        for other in together(filled, world=world):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_larger_than_the_queue_leaves_its_last() -> None:
    queue = Queue(3, 1)
    queue.push(torch.arange(5.0)[:, None], torch.arange(5))
    assert sorted(queue.owner.tolist()) == [2, 3, 4]


def test_what_is_not_finite_is_not_remembered() -> None:
    queue, bank = Queue(3, 2), Bank(3, 2)
    for x in (torch.ones(3, 2), torch.tensor([[torch.nan, 2], [2, 2], [torch.inf, 2]])):
        queue.push(x, torch.tensor([0, 1, 2]) + 10 * int(x[1, 1]))
        bank.write(x, torch.arange(3))
    for rows in (queue.rows, bank.rows):
        assert rows.tolist() == [[1, 1], [2, 2], [1, 1]]
    assert queue.owner.tolist() == [10, 21, 12]


def test_moco_remembers_the_teachers_keys_and_moves_by_its_schedules(source: Path) -> None:
    training = assemble(source, "image", "moco", "transformer:nano")
    settings = MoCoSettings(projector=(16,), queue=40, temperature=0.5, temperature_end=0.1, teacher_momentum=0.5)
    objective = MoCo(training.objective.encoder, training.objective.modality, settings)
    batch = next(iter(training.loader.steps(0, 1)))
    step = objective(batch, Draw.start(0, 0, 0, batch.index))
    step.loss.backward()
    assert not any(p.requires_grad for p in objective.teacher_encoder.parameters())
    objective.after_step(0.5)
    assert float(objective.temperature.now) == pytest.approx(0.3)
    assert objective.queue.owner[: len(batch)].tolist() == batch.index.tolist()
    torch.testing.assert_close(objective.queue.rows[: len(batch)].norm(dim=1), torch.ones(len(batch)))
    objective.after_step(1.0)
    assert float(objective.temperature.now) == pytest.approx(0.1)


def test_rows_of_a_queue_and_whose_they_are_stay_together_where_a_gpu_skips_a_step(source: Path) -> None:
    training = assemble(source, "image", "moco", "transformer:nano", queue=40)
    training._on_cpu = False  # a fused optimiser of the CPU skips as one of a GPU does
    objective, loss = training.objective, training.objective.loss
    objective.loss = lambda *given: replace(step := loss(*given), loss=torch.nan * step.loss)  # type: ignore[method-assign]
    training.step(0, next(iter(training.loader.steps(0, 1))))
    assert int(training.skipped) == 1
    assert torch.equal(objective.queue.rows.any(dim=1), objective.queue.owner >= 0)


def test_a_graphs_memory_goes_on_where_a_step_is_skipped(tmp_path: Path) -> None:
    def trained(*factors: float) -> dict[str, Tensor]:
        training = assemble(events(tmp_path), "events", "simclr", "tgn")
        objective, loss = training.objective, training.objective.loss
        objective.loss = lambda *given: replace(found := loss(*given), loss=factors[0] * found.loss)  # type: ignore[method-assign]
        for step, batch in enumerate(training.loader.steps(0, len(factors))):
            training.step(step, batch)
        return dict(objective.encoder.named_buffers())

    skipped, still = trained(torch.nan, torch.nan), trained(0.0, 0.0)
    assert torch.equal(skipped["origin"], still["origin"])
    assert skipped["memory.memory"].any()


def test_a_neighbour_is_the_nearest_of_another_sample(source: Path) -> None:
    objective = assemble(source, "image", "nnclr", "transformer:nano").objective
    assert isinstance(objective, NNCLR)
    torch.manual_seed(0)
    z, index = F.normalize(torch.randn(3, 32), dim=1), torch.tensor([5, 6, 7])
    torch.testing.assert_close(objective.neighbour(z, index), z, msg="an empty queue has no neighbours")
    rows = F.normalize(torch.cat([z + 0.01, z - 0.1]), dim=1)
    objective.queue.push(rows, torch.tensor([5, 1, 7, 2, 3, 4]))
    torch.testing.assert_close(objective.neighbour(z, index), rows[[3, 1, 5]])


def test_instances_move_their_entries_and_are_told_from_others_only(source: Path) -> None:
    training = assemble(source, "image", "instance", "transformer:nano")
    objective = training.objective
    assert isinstance(objective, Instance)
    assert objective.bank is not None
    assert len(objective.bank.rows) == 64
    rows = objective.bank.rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(64))
    assert float(rows.mean(dim=0).norm()) < 0.3, "they lie anywhere at first"
    batch = next(iter(training.loader.steps(0, 1)))
    before = objective.bank.rows[batch.index].clone()
    objective(batch, Draw.start(0, 1, 0, batch.index))
    objective.after_step(0.2)
    moved = objective.bank.rows[batch.index]
    assert not torch.equal(moved, before)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(len(batch)))


def test_a_memory_does_not_come_to_hold_one_vector_for_all(tmp_path: Path) -> None:
    """As it did where a network has no normalisation: then all samples are alike, and nothing tells them apart."""
    training = assemble(table(tmp_path), "table", "instance", "mlp:tiny", temperature=0.07, learning_rate=0.02)
    for step, batch in zip(range(60), training.loader.steps(0, 60), strict=True):
        training.step(step, batch)
    rows = training.objective.bank.rows  # type: ignore[union-attr]
    assert float((rows @ rows.T).mean()) < 0.1  # type: ignore[operator]


@pytest.mark.parametrize("method", ["instance", "deepcluster", "simclr+instance"])
def test_a_memory_has_the_size_of_the_state_that_is_loaded(source: Path, method: str) -> None:
    """As `Run.objective` does, which knows nothing of the source."""
    training = assemble(source, "image", method, "transformer:nano")
    training.step(0, next(iter(training.loader.steps(0, 1))))
    trained = training.objective
    anew = type(trained)(copy.deepcopy(trained.encoder), trained.modality, trained.settings)
    anew.load_state_dict(trained.state_dict())
    found = anew.state_dict()
    assert found.keys() == trained.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in trained.state_dict().items())


def test_an_index_of_a_cached_source_stays_below_what_the_objective_expects(source: Path) -> None:
    from labelfree.data.cache import Cached
    from labelfree.modalities.image import Image

    modality = Image()
    dataset = modality.open(source)
    assert dataset.index_end() == 64
    cached = Cached(dataset, modality)
    assert cached.index_end() == 64
    cached.kept = cached.kept[:10]
    assert cached.index_end() == 10
