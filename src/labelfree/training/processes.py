"""Several processes: Lightning Fabric launches them and wraps the module; nothing else of the engine knows how."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from labelfree.encoders.base import Encoder
from labelfree.errors import GUARD, LabelfreeError, death, machine_trouble, reason_of
from labelfree.objectives.base import Objective
from labelfree.training.loop import Training, heard_by
from labelfree.training.optim import build_optimizer

#: How long a process waits for the others: none is slower than that, and a launcher ends them where one has ended.
PATIENCE = timedelta(days=1)


def outside_world() -> int:
    """Processes that torchrun, srun or this module has started; 1 if none."""
    return int(os.environ.get("WORLD_SIZE") or _from_srun("NTASKS", 1))


def beside(devices: int) -> int:
    """Processes of this training that share this machine's memory, this one included."""
    if outside_world() == 1:
        return devices
    return int(os.environ.get("LOCAL_WORLD_SIZE") or outside_world() // _from_srun("NNODES", 1))


def is_first() -> bool:
    """Whether this is the process that chooses, writes and speaks; one alone is, whatever RANK was left over."""
    return outside_world() == 1 or int(os.environ.get("RANK") or _from_srun("PROCID", 0)) == 0


def _from_srun(name: str, alone: int) -> int:
    """A number that srun gave this process; a batch script has most of SLURM's variables too, and is alone."""
    return int(os.environ[f"SLURM_{name}"]) if "SLURM_STEP_NUM_TASKS" in os.environ else alone


def _say_as_torchrun_does() -> None:
    """Give a process of srun's the variables that torchrun would have given it."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_NODELIST", "127.0.0.1")
    names = {
        "RANK": _from_srun("PROCID", 0),
        "LOCAL_RANK": _from_srun("LOCALID", 0),
        "NODE_RANK": _from_srun("NODEID", 0),
        "WORLD_SIZE": _from_srun("NTASKS", 1),
        "LOCAL_WORLD_SIZE": _from_srun("NTASKS", 1) // _from_srun("NNODES", 1),
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(nodes),
        # any that all tasks of the job agree on, and other jobs on the node hardly take
        "MASTER_PORT": os.environ.get("MASTER_PORT", 15000 + _from_srun("JOB_ID", 0) % 40000),
    }
    os.environ |= {name: str(value) for name, value in names.items()}


def check_guarded() -> None:
    """Raises LabelfreeError in a process that is only just importing the script which started it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise LabelfreeError("Every process of a training runs the script anew, up to here.", f"Put {GUARD}.")


def run_everywhere(work: Callable[..., None], assignment: Any, job: Any, accelerator: str, world: int) -> Any:
    """Call `work(fabric, assignment, job)` in `world` processes: this one, those that exist already, or new ones.

    Args:
        work: a function of a module.
        assignment: what it works on; can be pickled. None on processes that learn it from the first.
        job: what only this process has, so that it need not be made again; new processes get None.
        accelerator: where to compute.
        world: processes in all.

    Returns:
        The assignment, of the first process.

    Raises:
        LabelfreeError: also where it was raised in a process that was started here.
    """
    if world == 1 or outside_world() > 1:
        fabric = _make_fabric(accelerator, world)
        fabric.launch()
        assignment = fabric.broadcast(assignment) if world > 1 else assignment
        work(fabric, assignment, job)
        return assignment
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # whether a step left some weights unused is no one's trouble, and each process would say so
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given = (world, port, accelerator, work, assignment)
    try:
        context = mp.start_processes(_child, given, nprocs=world, join=False)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise LabelfreeError(
            f"The source or the network cannot be handed to other processes: {reason_of(error)}.",
            "Set devices=1, or define its class and functions in a module, by name.",
        ) from None
    with _signals_passed_to(context.pids()):
        try:
            while not context.join():
                pass
        except mp.ProcessRaisedException as error:
            name, _, words = str(error).strip().splitlines()[-1].partition(": ")
            if name.endswith(_Mendable.__name__):
                raise LabelfreeError(*json.loads(words)) from None
            raise
        except mp.ProcessExitedException as error:
            how, remedy = death(error.exit_code)
            raise LabelfreeError(f"Process {error.error_index} of the training {how}.", remedy) from None
    return assignment


class _Mendable(Exception):
    """Problem and remedy as JSON: of what another process raises, only the text comes here."""


def _child(rank: int, world: int, port: int, accelerator: str, work: Callable[..., None], assignment: Any) -> None:
    """A process of our own, which finds itself as torchrun's processes do."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
    try:
        run_everywhere(work, assignment, None, accelerator, world)
    except Exception as error:
        mendable = error if isinstance(error, LabelfreeError) else machine_trouble(error)
        if mendable is None:
            raise
        raise _Mendable(json.dumps([mendable.problem, mendable.remedy])) from error
    dist.destroy_process_group()  # NCCL warns of one that is left


@contextmanager
def _signals_passed_to(pids: list[int]) -> Iterator[None]:
    """While inside, Ctrl-C and SIGTERM ask the processes `pids` to stop, and this one waits for them."""

    def pass_on(number: int, frame: Any) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    with heard_by(pass_on):
        yield


def _make_fabric(accelerator: str, world: int) -> Any:
    """Fabric for this process, alone or one of several that exist already."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if world == 1:
        return Fabric(accelerator=accelerator, devices=1, plugins=[LightningEnvironment()])
    if "WORLD_SIZE" not in os.environ:
        _say_as_torchrun_does()
    around: Any = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    # which weights a step uses is the objective's affair (a mask vector, for instance, has no part in every step)
    # statistics and memories are equal on all processes by themselves: nothing is sent around before each step
    # the others wait for the first as long as it plans: it may read a large source, and try a slow network
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, timeout=PATIENCE)
    return Fabric(accelerator=accelerator, devices=local, num_nodes=world // local, strategy=strategy, plugins=[around])


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
        # fused optimisers do not take shards
        training.optimizer = build_optimizer(objective.parameters(), settings, settings.batch_size, fused=False)
    else:
        training.module = fabric.setup_module(training.module, move_to_device=False)
        training.backward = fabric.backward


def shard(objective: Objective, device: torch.device, world: int) -> None:
    """Shard an objective over processes: each block of its encoders (teachers too) by itself, then all the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in objective.parameters():
        parameter.data = parameter.data.contiguous()  # shards are cut from plain rows, not from channels-last ones
    mesh = init_device_mesh(device.type, (world,))
    encoders = [module for module in objective.modules() if isinstance(module, Encoder)]
    lists = [module for encoder in encoders for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    for block in dict.fromkeys(block for blocks in lists for block in blocks):  # towers are encoders in an encoder
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
