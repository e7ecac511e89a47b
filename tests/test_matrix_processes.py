"""Every objective and every kind of data: two processes give the loss and gradient of one, at the same global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cells import BATCH, assemble, make_sources, telling_cells
from processes import average_gradients, together
from torch import Tensor, nn

from labelfree.data.draw import Draw
from labelfree.distributed import all_sum, whole_state, world_size
from labelfree.training.batchnorm import synchronise
from labelfree.training.processes import shard

#: What is also compared with the encoders of other makes, whose batch normalisation or dropout could differ.
OTHERWISE = {"byol", "masked"}


def without_jumps(module: nn.Module) -> None:
    """Replace ReLU by GELU: where a value is all but 0, rounding decides on the slope, and a gradient would jump."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.GELU())


def first_step(rank: int, sources: dict[str, Path], cells: list[tuple[str, str, str]]) -> dict[str, Tensor]:
    """Loss, gradients and statistics of the first step of each cell, as all processes together see them."""
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for kind, method, encoder in cells:
        training = assemble(sources[kind], kind, method, encoder)
        without_jumps(training.objective)
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
        training.objective.after_step(0.5)  # queues and centres hold the global batch
        found |= {f"{cell}: {key}": value.clone() for key, value in objective.named_buffers()}
    return found


def sharded_steps(rank: int, sources: dict[str, Path], cells: list[tuple[str, str, str]]) -> list[str]:
    """What stands in the way of sharding each cell over processes and training it."""
    torch.set_num_threads(1)
    faults = []
    for kind, method, encoder in cells:
        training = assemble(sources[kind], kind, method, encoder)
        shard(training.objective, torch.device("cpu"), world_size())
        try:
            batch = next(iter(training.loader.steps(0, 1)))
            training.objective(batch, Draw.start(0, 0, 0, batch.index)).loss.backward()
            training.objective.after_step(0.5)
            whole_state(training.objective)
        except Exception as error:  # whatever it is, the cell is named
            faults.append(f"{kind} {method} {encoder}: {error}")
    return faults


def test_every_objective_can_be_sharded(tmp_path: Path) -> None:
    cells = {method: (kind, method, encoder) for kind, method, encoder in telling_cells() if "transformer" in encoder}
    assert together(sharded_steps, make_sources(tmp_path), list(cells.values()), world=1) == [[]]


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    cells = [cell for cell in telling_cells() if cell[2] == "transformer:pico" or cell[1] in OTHERWISE]
    one = first_step(0, sources, cells)
    for other in together(first_step, sources, cells):
        assert other.keys() == one.keys()
        for name, expected in one.items():
            scale = max(1.0, float(expected.abs().max()))
            error = float((other[name] - expected).abs().max()) / scale
            assert error < 1e-5, f"{name} differs by {error:.1e}"


def unequal(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Sources of which one process gets samples all alike, or all shorter, where the other gets some that are longer,
    and what needs the samples of both.
    """
    series = np.random.default_rng(0).normal(size=(BATCH, 64, 2)).astype(np.float32)
    series[:2, 40:] = np.nan
    np.save(folder / "series.npy", series)
    words = ("apple", "river", "engine", "winter", "window", "horse", "letter")
    texts = [" ".join(f"The {word} is here." for word in words[: 1 + number % 7]) for number in range(40)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    sources = {"series": folder / "series.npy", "text": folder / "texts.txt"}
    return sources, [("series", "ts2vec"), ("text", "simclr+pretext"), ("text", "simclr+ts2vec")]


def losses(rank: int, sources: dict[str, Path], methods: list[tuple[str, str]]) -> list[Tensor]:
    """The loss of the first steps, each sample collated anew with those of its own process."""
    torch.set_num_threads(1)
    found = []
    for kind, method in methods:
        training = assemble(sources[kind], kind, method, "transformer:pico", cache="none", batch_size=4)
        for step, batch in zip(range(3), training.loader.steps(0, 3), strict=True):
            loss = training.objective.eval()(batch, Draw.start(0, 0, step, batch.index)).loss
            found.append(all_sum(loss.detach()) / world_size())
    return found


def test_processes_whose_samples_are_of_other_lengths_give_the_loss_of_one(tmp_path: Path) -> None:
    given = unequal(tmp_path)
    one = torch.stack(losses(0, *given))
    for other in together(losses, *given):
        torch.testing.assert_close(torch.stack(other), one, rtol=1e-4, atol=1e-4)
