"""Files of tensors that cannot lie: safetensors, written beside and renamed, hashed, verified on reading."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from labelfree.errors import LabelfreeError
from labelfree.files import write_bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Save tensors; returns the SHA-256 of the file's bytes. Shared storage is stored once per name."""
    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        where = held.untyped_storage().data_ptr()
        whole[name] = held.clone() if where in storages else held
        storages.add(where)
    content = serialise(whole)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, sha256: str, remedy: str = "Restore it from a copy.") -> dict[str, Tensor]:
    """Tensors of a file whose hash must be `sha256`. Nothing in it is ever executed.

    Raises:
        LabelfreeError: missing, cut or altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelfreeError(f"'{path}' cannot be read: {error.strerror}.", "Was the folder copied whole?") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise LabelfreeError(
            f"'{path}' is cut or altered: its SHA-256 is {found[:12]}…, expected {sha256[:12]}….",
            remedy,
        )
    return parse(content)
