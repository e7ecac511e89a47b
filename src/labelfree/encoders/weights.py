"""Weights that an encoder starts from: a run's, or a library's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from labelfree.encoders.base import Encoder, check_weights
from labelfree.errors import LabelfreeError, reason_of
from labelfree.files import read_json, standing
from labelfree.tensors import read_tensors


def load_weights(encoder: Encoder, path: Path) -> None:
    """Start from a run's encoder, or from a library's weights in a local file (.safetensors, or .pt/.pth of tensors).

    Raises:
        LabelfreeError: nothing there, or weights that do not fit; nothing in the file is ever executed.
    """
    if path.is_dir():
        folder = standing(path / "encoder")
        config = read_json(folder / "config.json")
        state = read_tensors(folder / "model.safetensors", config["sha256"])
        own = encoder.state_dict()
        check_weights(own, state, f"'{path}'", "Leave out the settings that differ from the run's.")
        encoder.load_state_dict(state)
    elif path.suffix == ".safetensors" and path.exists():
        encoder.load_library_state(_named_tensors(path, load_file), f"'{path}'")
    elif path.suffix in (".pt", ".pth", ".bin") and path.exists():
        load = partial(torch.load, map_location="cpu", weights_only=True)
        encoder.load_library_state(_named_tensors(path, load), f"'{path}'")
    else:
        raise LabelfreeError(
            f"--init '{path}' is neither a run nor a file of weights.", "Give a run's folder, .safetensors or .pth."
        )


def _named_tensors(path: Path, load: Callable[[Path], Any]) -> dict[str, torch.Tensor]:
    """Tensors of a library's file by their names. Raises LabelfreeError where it holds anything else."""
    remedy = "Save the network's state_dict() anew."
    try:
        found = load(path)
    except (OSError, SafetensorError) as error:
        raise LabelfreeError(f"'{path}' cannot be read: {reason_of(error)}.", remedy) from None
    except Exception:  # PyTorch fails in any way on what it did not write, and advises to execute it
        problem = f"'{path}' cannot be read: it is cut, no file of PyTorch, or holds more than tensors."
        raise LabelfreeError(problem, remedy) from None
    if not isinstance(found, dict):
        problem = f"'{path}' should hold tensors by name, and holds a value of type {type(found).__name__}."
        raise LabelfreeError(problem, remedy)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            problem = f"'{path}' should hold tensors by name, and holds {name!r} of type {type(value).__name__}."
            raise LabelfreeError(problem, remedy)
    return found
