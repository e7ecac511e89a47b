"""Several processes: Lightning Fabric launches them and wraps the module; nothing else of the engine knows how."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError
from labelfree.objectives.base import Objective
from labelfree.training.loop import Training
from labelfree.training.optim import build_optimizer
from labelfree.training.settings import TrainSettings


def make_fabric(settings: TrainSettings | None, world: int, outside: bool) -> Any:
    """A Fabric for `world` processes: this one, new ones on this machine, or those that torchrun or SLURM started.

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
    """Make the training one of several, with synchronised batch statistics and averaged gradients.

    With `strategy=ddp` each process holds the whole model; with `fsdp` a shard of each weight, gradient and moment, put
    together block by block when it is needed (FSDP2; Zhao et al. 2023).
    """
    from labelfree.training.batchnorm import synchronise

    objective, settings = training.objective, training.settings
    if settings.compile:
        objective.compile()
    if fabric.world_size == 1:
        return
    synchronise(objective)
    if settings.strategy == "fsdp":
        shard(objective, fabric.device, fabric.world_size)
        training.optimizer = build_optimizer(objective.parameters(), settings, settings.batch_size)
    else:
        training.module = fabric.setup_module(training.module, move_to_device=False)
        training.backward = fabric.backward


def shard(objective: Objective, device: torch.device, world: int) -> None:
    """Shard an objective over processes: each block of its encoders (teachers too) by itself, then all the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for encoder in [module for module in objective.modules() if isinstance(module, Encoder)]:
        for blocks in [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]:
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
