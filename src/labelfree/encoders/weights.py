"""Weights that an encoder starts from: a run's, or a library's."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from labelfree.encoders.base import Encoder, check_weights
from labelfree.errors import LabelfreeError
from labelfree.files import read_json
from labelfree.tensors import read_tensors


def load_weights(encoder: Encoder, path: Path) -> None:
    """Start from a run's encoder, or from a library's weights in a local file (.safetensors, or .pt/.pth of tensors).

    Raises:
        LabelfreeError: nothing there, or weights that do not fit; nothing in the file is ever executed.
    """
    if path.is_dir():
        config = read_json(path / "encoder" / "config.json")
        state = read_tensors(path / "encoder" / "model.safetensors", config["sha256"])
        own = encoder.state_dict()
        check_weights(own, state, f"'{path}'", "Leave out the settings that differ from the run's.")
        encoder.load_state_dict(state)
    elif path.suffix == ".safetensors" and path.exists():
        encoder.load_library_state(load_file(path), f"'{path}'")
    elif path.suffix in (".pt", ".pth", ".bin") and path.exists():
        encoder.load_library_state(torch.load(path, map_location="cpu", weights_only=True), f"'{path}'")
    else:
        raise LabelfreeError(
            f"--init '{path}' is neither a run nor a file of weights.", "Give a run's folder, .safetensors or .pth."
        )
