"""Training on a GPU, as far as a machine without one can tell: losses are computed with tensors that have a
device and a shape and no values, so that one left behind on the CPU, or a question that the host would have to wait
for, shows.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import assemble, make_sources, telling_cells
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from labelfree.data import on_device
from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.data.partners import Partners
from labelfree.losses import sigreg
from labelfree.modalities.video.tokens import frames_at
from labelfree.training.batchnorm import _moments
from labelfree.training.health import feature_health
from labelfree.training.loop import Training

GPU = torch.device("cuda", 0)
#: Cells in which the host does wait, once a step, and why.
WAITS = {
    # which pictures are padding decides what batch normalisation sees
    ("audio", "timm:test_resnet"),
    # whether a new pass over the events begins decides what is remembered
    ("events", "tgn"),
}
#: Functions that keep what they bring to the device.
ONCE = {on_device.on_device.__name__, on_device.constant.__name__, sigreg._rule.__name__}
CELLS = [cell for cell in telling_cells(("image", "audio")) if (cell[0], cell[2]) not in WAITS]


class Refusals(TorchDispatchMode):
    """Refuses what CUDA refuses and tensors without values would not, and copies for which the host waits."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.index.Tensor and args[0].dtype == torch.uint16 and args[0].is_cuda:
            raise NotImplementedError("\"index_cuda\" not implemented for 'UInt16'")
        assert "bicubic2d_aa" not in str(func), "its gradient differs from run to run"
        assert func is not torch.ops.aten._linalg_check_errors.default, "whether it went well is asked of the GPU"
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != found.device and not kept():
            assert found.is_cuda, "a copy to the CPU waits for the GPU"
            assert kwargs
            assert kwargs.get("non_blocking"), "a copy to the GPU waits for it"
        return found


def kept() -> bool:
    """Whether what is copied now is kept, and not copied again in the next step."""
    return any(frame.f_code.co_name in ONCE for frame, _ in traceback.walk_stack(None))


@contextmanager
def mixed_precision() -> Iterator[None]:
    """What `torch.autocast` does on a GPU, and refuses where there is none."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


def to_gpu(module: nn.Module) -> None:
    """Give every module tensors there in place of its own, those that are shared once."""
    moved: dict[int, Tensor] = {}

    def there(value: Tensor) -> Tensor:
        return moved.setdefault(id(value), value.detach().to(GPU))

    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(there(weight), weight.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, there(buffer))


@pytest.mark.parametrize(("kind", "method", "encoder"), CELLS)
def test_a_step_stays_on_the_device_and_asks_it_nothing(
    kind: str, method: str, encoder: str, sources: dict[str, Path]
) -> None:
    check(assemble(sources[kind], kind, method, encoder))


@pytest.mark.parametrize("encoder", ["pyg:gat-64x2", "pyg:sage-64x2", "pyg:gin-16x2"])
def test_graph_networks_do_so_too(encoder: str, sources: dict[str, Path]) -> None:
    check(assemble(sources["graph"], "graph", "byol", encoder))


def check(training: Training) -> None:
    """Raises where a step leaves the device or waits for it."""
    objective, batch = training.objective, next(iter(training.loader.steps(0, 1)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_gpu(objective)
        batch = batch.to(GPU)
        with Refusals(), mixed_precision():
            step = objective.loss(batch, Draw.start(0, 0, 0, batch.index))
        objective.after_step(0.5)
        found = {"loss": step.loss, "features": step.features, **step.logs, **feature_health(step.features)}
        elsewhere = [name for name, value in found.items() if value.device != GPU]
        assert not elsewhere
        assert all(value.device == GPU for value in objective.state_dict().values())


def test_pictures_and_films_of_16_bits_are_chosen_there() -> None:
    with FakeTensorMode(), Refusals():
        rows = torch.zeros(2, dtype=torch.int64, device=GPU)
        pictures = Batch(torch.zeros(4, 1, 8, 8, dtype=torch.uint16, device=GPU), torch.zeros_like(rows))
        assert pictures[rows].data.dtype == torch.uint16
        films = torch.zeros(2, 6, 1, 8, 8, dtype=torch.uint16, device=GPU)
        assert frames_at(films, rows[:, None].expand(-1, 3)).shape == (2, 3, 1, 8, 8)


def test_batches_with_partners_are_drawn_there(sources: dict[str, Path]) -> None:
    near = assemble(sources["image"], "image", "simclr", "transformer:pico").loader.dataset
    cases, places = Partners(np.arange(len(near)) // 2, seed=0), np.array([3, 2])
    with FakeTensorMode(allow_non_fake_inputs=True):
        near.to(GPU)
        with Refusals():
            batch = cases.tie(near.batch(np.array([3, 2, 2, 3])), places)
        assert {tensor.device for tensor in batch.tensors()} == {GPU}


def test_statistics_of_all_processes_are_taken_there() -> None:
    with FakeTensorMode(), Refusals():
        assert all(found.is_cuda for found in _moments(torch.zeros(4, 3, 2, device=GPU)))
