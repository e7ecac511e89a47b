"""The state of a training on disk: a folder a checkpoint, whole or not there, hashed and verified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labelfree import distributed
from labelfree.distributed import shard_like
from labelfree.errors import LabelfreeError
from labelfree.files import replacing, write_bytes
from labelfree.tensors import read_tensors, write_tensors


def save_state(folder: Path, step: int, module: nn.Module, optimizer: Optimizer, keep: int = 2) -> Path:
    """Write the training state of `step` as a folder of its own, then drop all but the newest `keep`.

    The folder appears under its name only when it is whole. All processes must call it; the first one writes.
    """
    model = distributed.whole_state(module)
    groups, moments, numbers = _split(optimizer)
    final = folder / f"step-{step:09d}"
    if distributed.rank() != 0:
        return final
    with replacing(final) as beside:
        beside.mkdir()
        digests = {
            "model": write_tensors(beside / "model.safetensors", model),
            "optimizer": write_tensors(beside / "optimizer.safetensors", moments),
        }
        content = {"step": step, "sha256": digests, "groups": groups, "numbers": numbers}
        write_bytes(beside / "state.json", json.dumps(content).encode())
    killed = folder.glob("step-*.part*")  # what a process that was killed had begun
    for old in (*sorted(folder.glob("step-*[0-9]"))[:-keep], *killed):
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> int:
    """Restore the newest checkpoint under `folder` and return its step; 0 where there is none.

    Raises:
        LabelfreeError: it is cut or altered, or is of another model.
    """
    newest = newest_state(folder)
    if newest is None:
        return 0
    content = load_module(newest, module)
    moments = _tensors(newest, "optimizer", content)
    _check_trained(optimizer, content, moments, newest)
    _join(optimizer, content, moments)
    return int(content["step"])


def newest_state(folder: Path) -> Path | None:
    """The newest checkpoint under `folder`, if there is one."""
    return max(folder.glob("step-*[0-9]"), default=None)


def load_module(newest: Path, module: nn.Module) -> dict[str, Any]:
    """Restore the module of a checkpoint, and return what its `state.json` says.

    Raises:
        LabelfreeError: it is cut or altered, or is of another model.
    """
    try:
        content: dict[str, Any] = json.loads((newest / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise LabelfreeError(f"'{newest / 'state.json'}' is cut or altered: {error}.", _without(newest)) from None
    try:
        state = _tensors(newest, "model", content)
        cut = {name: shard_like(state[name], now) for name, now in module.state_dict().items() if name in state}
        module.load_state_dict({**state, **cut})
    except RuntimeError as error:
        raise LabelfreeError(
            f"'{newest}' holds another model: {str(error).splitlines()[-1].strip()}.",
            "A network of yours must be as it was; else take the version of Labelfree that `run.json` names.",
        ) from None
    return content


def _tensors(newest: Path, name: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    return read_tensors(newest / f"{name}.safetensors", content["sha256"][name], _without(newest))


def _without(newest: Path) -> str:
    return f"Delete '{newest}' to resume from the one before."


def _split(optimizer: Optimizer) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, float]]:
    """An optimiser's state as JSON-ready groups, tensors and plain numbers."""
    state = optimizer.state_dict()
    flat = {
        f"{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items() if value is not None
    }
    tensors = {key: distributed.whole(value) for key, value in flat.items() if isinstance(value, Tensor)}
    return state["param_groups"], tensors, {key: value for key, value in flat.items() if key not in tensors}


def _check_trained(
    optimizer: Optimizer, content: Mapping[str, Any], moments: Mapping[str, Tensor], newest: Path
) -> None:
    """Raises LabelfreeError where other weights are trained than those whose moments a checkpoint holds."""
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    had = [len(group["params"]) for group in content["groups"]]
    places = {name: int(name.partition(".")[0]) for name in moments}
    if had != [len(group["params"]) for group in optimizer.param_groups] or any(
        moment.ndim and moment.shape != params[places[name]].shape for name, moment in moments.items()
    ):
        raise LabelfreeError(
            f"'{newest}' was made while {sum(had)} tensors of weights were trained, which are not the {len(params)} "
            "that are trained now.",
            "Freeze the layers of your network that were frozen when the run was started, and no others.",
        )


def _join(optimizer: Optimizer, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **content["numbers"]}.items():
        number, key = name.split(".", 1)
        of_weights = isinstance(value, Tensor) and value.shape == params[int(number)].shape
        state.setdefault(int(number), {})[key] = shard_like(value, params[int(number)]) if of_weights else value
    optimizer.load_state_dict({"state": state, "param_groups": content["groups"]})
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                # Files hold plain rows; fused optimisers pair weights and moments by their place in memory, so the
                # moments of channels-last weights must be channels-last again.
                entry[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
