"""Several processes: Lightning Fabric launches them and wraps the module; nothing else of the engine knows how."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from labelfree.errors import LabelfreeError
from labelfree.training.loop import Training
from labelfree.training.settings import TrainSettings


def make_fabric(settings: TrainSettings | None, world: int, outside: bool) -> Any:
    """A Fabric for `world` processes: this one alone, new ones on this machine, or those that torchrun or SLURM started.

    Args:
        settings: of the training; None on processes that learn them from the first.
        world: processes in all.
        outside: whether they exist already.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # which parameters a step uses is the objective's affair; DDP's advice to promise that all are used is not for users
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    accelerator = settings.accelerator if settings is not None else "auto"
    if world == 1:
        return Fabric(accelerator=accelerator, devices=1)
    if outside:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", world)))
        strategy = DDPStrategy(find_unused_parameters=True)
        return Fabric(accelerator=accelerator, devices=local, num_nodes=world // local, strategy=strategy)
    return Fabric(
        accelerator=accelerator, devices=world, strategy=DDPStrategy(start_method="spawn", find_unused_parameters=True)
    )


def launch_here(fabric: Any, work: Callable[..., Any], *args: Any) -> None:
    """Run `work` in new processes of this machine; a LabelfreeError in one of them is raised here."""
    from torch.multiprocessing.spawn import ProcessRaisedException

    try:
        fabric.launch(work, *args)
    except ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        name, _, words = last.partition(": ")
        if name.endswith(("LabelfreeError", "Refusal")):
            raise LabelfreeError(words) from None
        raise


def wrap(fabric: Any, training: Training) -> None:
    """Make the training one of several, with synchronised batch statistics and averaged gradients."""
    from labelfree.training.batchnorm import synchronise

    if training.settings.compile:
        training.objective.compile()
    if fabric.world_size == 1:
        return
    if training.settings.strategy == "fsdp":
        raise LabelfreeError("strategy=fsdp needs one GPU a process.", "Use strategy=ddp.")
    synchronise(training.objective)
    training.module, training.optimizer = fabric.setup(training.module, training.optimizer, move_to_device=False)
    training.backward = fabric.backward
