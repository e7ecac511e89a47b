"""The training loop. It knows a loader, an objective and an optimiser, and that is all."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labelfree import distributed
from labelfree.data.batch import Batch
from labelfree.data.draw import Draw, hash_int
from labelfree.data.loader import Loader, WorkerDied
from labelfree.errors import LabelfreeError
from labelfree.objectives.base import Objective
from labelfree.runtime import autocast
from labelfree.training import optim
from labelfree.training.health import Watch, feature_health
from labelfree.training.settings import TrainSettings

#: Steps in a row without a finite gradient after which a training is given up.
GIVE_UP = 20
#: Steps in a row that say something of the pace.
FEWEST = 10


class Stepper(nn.Module):
    """An objective under mixed precision, returning plain tensors: what DDP, FSDP and compile wrap."""

    def __init__(self, objective: Objective, device: torch.device, precision: str) -> None:
        super().__init__()
        self.objective = objective
        self._device, self._precision = device, precision

    def forward(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with autocast(self._device, self._precision):
            step = self.objective(batch, draw)
        return step.loss, step.features, dict(step.logs)


@dataclass
class Training:
    """All that changes while a model learns, and the settings of how.

    Attributes:
        objective: the bare objective.
        module: the objective as it is called: `Stepper`, perhaps wrapped for several processes.
        steps: of the whole training.
        seed: of the run; every random number follows from it, the step and the sample.
        backward: computes gradients of a loss (Fabric's, which knows about wrappers).
        skipped: how many steps in a row had no finite gradient, counted on the device.
    """

    objective: Objective
    module: nn.Module
    optimizer: Optimizer
    loader: Loader
    settings: TrainSettings
    steps: int
    seed: int
    backward: Callable[[Tensor], None] = field(default=lambda loss: loss.backward())
    skipped: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def __post_init__(self) -> None:
        self.skipped = self.skipped.to(self.loader.device)
        self._rate = optim.peak_rate(self.settings, self.settings.batch_size)
        self._on_cpu = self.loader.device.type == "cpu"

    def step(self, step: int, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step: forward, backward, move the weights. Returns loss, features and logs, still on the device."""
        epoch = self.loader.order.epoch(step)
        torch.manual_seed(hash_int(self.seed, step, distributed.rank()) & 0x7FFFFFFF)
        rate = self._rate * optim.rate_factor(self.settings, step, self.steps)
        optim.set_rate(self.optimizer, rate)
        optim.set_decay(self.optimizer, self.settings, step, self.steps)
        buffers = _float_buffers(self.objective)
        before = _packed(buffers)
        loss, features, logs = self.module(batch, Draw.start(self.seed, epoch, step, batch.index))
        self.backward(loss)
        norm = self._gradient_norm()
        self._move(norm, buffers, before, (step + 1) / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        if self.loader.order.epoch(step + 1) > epoch:
            self.objective.after_epoch()
        return loss.detach(), features.detach(), {**logs, "grad_norm": norm, "learning_rate": torch.tensor(rate)}

    @torch.no_grad()
    def _gradient_norm(self) -> Tensor:
        """Global gradient norm, after which gradients are clipped to `clip`."""
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            raise LabelfreeError("The loss depends on no weight.", "Is every part of the network frozen?")
        norm = distributed.whole(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if self.settings.clip:
            scale = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(grads, scale)
        return norm

    @torch.no_grad()
    def _move(self, norm: Tensor, buffers: list[Tensor], before: Tensor, progress: float) -> None:
        """Step optimiser and objective, unless a gradient is not finite: then neither weights nor statistics move.

        Args:
            before: what the buffers held before the forward pass, `_packed`.
        """
        finite = torch.isfinite(norm)
        self.skipped = torch.where(finite, 0, self.skipped + 1)
        if not self._on_cpu and getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # fused optimisers skip by themselves, on the device, without the host waiting for the answer
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
            self.objective.after_step(progress)
            _restore(buffers, before, finite)
            return
        if finite:  # the host waits for the answer, since LARS and optimisers of shards cannot skip by themselves
            self.optimizer.step()
            self.objective.after_step(progress)
            return
        _restore(buffers, before, finite)
        self.check_gradients()

    def check_gradients(self) -> None:
        """Raises LabelfreeError where too many steps in a row were skipped. On a GPU this waits for the device."""
        if int(self.skipped) >= GIVE_UP:
            raise LabelfreeError(
                f"The gradient was not finite for {GIVE_UP} steps in a row: training stopped, the weights are whole.",
                "Lower learning_rate, or set precision=32.",
            )


def _float_buffers(module: nn.Module) -> list[Tensor]:
    """Running statistics that a bad batch could spoil: batch normalisation's, centres. Not those of modules that are
    not `rolled_back`: memories, whose rows would no longer fit the whole numbers that say whose they are.
    """
    own = (part for part in module.modules() if getattr(part, "rolled_back", True))
    floats = (b for part in own for b in part.buffers(recurse=False) if b.is_floating_point())
    return [b for b in floats if b.numel() <= (1 << 24 if b.is_cuda else 1 << 16)]


def _packed(tensors: list[Tensor]) -> Tensor:
    """All values one behind another, in the widest type among them: one operation on a GPU, not one each."""
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.empty(0)


def _restore(buffers: list[Tensor], before: Tensor, finite: Tensor) -> None:
    """Give buffers what they held `before`, unless the step was finite."""
    if buffers:
        values = torch.where(finite, _packed(buffers), before).split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [value.view_as(buffer) for value, buffer in zip(values, buffers, strict=True)])


class StopRequest:
    """Set by Ctrl-C or SIGTERM; the loop looks at it between steps. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        if distributed.world_size() == 1:
            return self.name is not None
        asked = torch.tensor(float(self.name is not None), device=device)
        return bool(distributed.all_sum(asked) > 0)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, Ctrl-C and SIGTERM ask for a clean stop."""
    request = StopRequest()
    with heard_by(request):
        yield request


@contextmanager
def heard_by(listener: Callable[[int, Any], None]) -> Iterator[None]:
    """While inside, Ctrl-C and SIGTERM call `listener` (only in the main thread, where alone one may listen).

    A handler that is not Python's, such as that of a program around it, could not be given back, and is left in place.
    """
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {n: signal.signal(n, listener) for n in numbers if signal.getsignal(n) is not None}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def read_out(loss: Tensor, features: Tensor, logs: dict[str, Tensor], world: int) -> dict[str, float]:
    """A logged step's numbers on the host: the loss over all processes, health of the global batch's features."""
    if world > 1:
        loss = distributed.all_sum(loss) / world
        features = distributed.gather(features)
    values = {"loss": loss, **feature_health(features), **logs}
    return {key: _round(float(value)) for key, value in values.items()}


def _round(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


@dataclass
class Callbacks:
    """What the loop tells the world; each is called on every process.

    Attributes:
        reckon: asked on the way: how many steps does the whole training have?
    """

    log: Callable[[int, dict[str, float]], None]
    save: Callable[[int], None]
    tick: Callable[[int], None]
    warn: Callable[[str], None]
    reckon: Callable[[int], int] | None = None


def _batches(training: Training, start: int, tell: Callbacks, shares: Sequence[float]) -> Iterator[tuple[int, Batch]]:
    """Steps and their batches; after each share of those that remain there may turn out to be more or fewer.

    What was decided is saved at once, so that a resumed training goes on with it.
    """
    # one loader throughout, whose workers start once: which samples a step has does not depend on how many follow
    batches = training.loader.steps(start, sys.maxsize if shares else training.steps)
    for share in (*shares, 1.0):
        stop = min(training.steps, start + max(FEWEST, round(share * (training.steps - start))))
        yield from zip(range(start, stop), batches, strict=False)
        start = stop
        if start == training.steps:
            return
        if tell.reckon is not None and (steps := tell.reckon(start)) != training.steps:
            training.steps = steps
            tell.save(start)


def _until_stopped(batches: Iterator[tuple[int, Batch]], request: StopRequest) -> Iterator[tuple[int, Batch]]:
    """Steps and their batches, as long as they come: a worker that is still starting falls to the signal itself that
    asks to stop. Of several processes the others would wait for this one's next step.
    """
    try:
        yield from batches
    except WorkerDied:
        if request.name is None or distributed.world_size() > 1:
            raise


def train(
    training: Training, start: int, request: StopRequest, tell: Callbacks, shares: Sequence[float] = ()
) -> tuple[int, dict[str, float]]:
    """Train from step `start` to the end, or until asked to stop.

    Args:
        shares: of the steps that remain, one after the other; after each `tell.reckon` is asked how many there are.

    Returns:
        Steps done, and the last logged line.
    """
    settings, line = training.settings, {}
    log_every, save_every = int(settings.log_every), int(settings.checkpoint_every)
    world = distributed.world_size()
    waits = world > 1 and training.loader.device.type != "cpu"
    watch = Watch(settings.batch_size, training.objective.vital)
    done = start
    began = time.perf_counter()
    # kept until all is saved: the end of it waits for what workers are reading
    steps = _until_stopped(_batches(training, start, tell, shares), request)
    for step, batch in steps:
        loss, features, logs = training.step(step, batch)
        done = step + 1
        if done % log_every == 0 or done in (1, training.steps):
            training.check_gradients()
            line = read_out(loss, features, logs, world)
            line |= {"epoch": training.loader.order.epoch(step), "seconds": round(time.perf_counter() - began, 3)}
            tell.log(done, line)
            for words in watch.read(line, done / training.steps):
                tell.warn(words)
        tell.tick(done)
        # several processes agree on a GPU only where the host waits for it anyway
        if (not waits or done % log_every == 0) and request.agreed(training.loader.device):
            break
        if done % save_every == 0 and done < training.steps:
            tell.save(done)
    if done == training.steps and math.isnan(line.get("feature_std", 0.0)):
        raise LabelfreeError(
            "The features are not finite at the end: the training has diverged.", "Lower learning_rate, or set clip=1."
        )
    tell.save(done)
    return done, line
