"""Files of weights: what is none is named, and never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labelfree.encoders.custom import Custom
from labelfree.encoders.weights import load_weights
from labelfree.errors import LabelfreeError

LAYER = nn.Linear(3, 2)


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.folder,)


def fresh() -> Custom:
    return Custom(nn.Linear(3, 2), 2, "pooled")


def test_tensors_by_name_are_taken(tmp_path: Path) -> None:
    torch.save(LAYER.state_dict(), tmp_path / "layer.pth")
    encoder = fresh()
    load_weights(encoder, tmp_path / "layer.pth")
    torch.testing.assert_close(encoder.network.state_dict(), LAYER.state_dict())


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\3\4 and more", bytes(range(256))])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_of_something_else_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelfreeError, match=rf"{name}' cannot be read: .+\. Save the network"):
        load_weights(fresh(), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a value of type list"),
        ({"epoch": 3, **LAYER.state_dict()}, "holds 'epoch' of type int"),
        ({"state_dict": dict(LAYER.state_dict())}, "holds 'state_dict' of type dict"),
    ],
)
def test_what_is_saved_beside_weights_or_instead_of_them_is_named(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(LabelfreeError, match=words):
        load_weights(fresh(), tmp_path / "x.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "saved.pth")
    (tmp_path / "pickled.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("saved.pth", "pickled.pth"):
        with pytest.raises(LabelfreeError, match="holds more than tensors"):
            load_weights(fresh(), tmp_path / name)
    assert not (tmp_path / "sprung").exists()
