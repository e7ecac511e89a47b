"""Arrays that lie in files: other processes open the files, where numpy would send them every byte."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np


def sent(number: int) -> Any:
    """An open file as another process gets it, which then takes its number from `detach()`."""
    from multiprocessing.reduction import DupFd  # Windows has none

    return DupFd(number)


@dataclass(frozen=True)
class InFile:
    """Where an array lies.

    Attributes:
        file: path, or an open file that has none.
        start: byte of its first value.
        dtype, shape, strides: of the array.
    """

    file: Any
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, array: np.ndarray, number: int | None = None) -> InFile | None:
        """Where a mapped array lies, or the one that it is a view of; None for one in memory.

        Args:
            number: of the open file, where it has no path.
        """
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not isinstance(root, np.memmap) or not isinstance(root.base, mmap.mmap):
            return None
        file = root.filename if number is None else sent(number)
        start = root.offset + array.ctypes.data - root.ctypes.data
        return None if file is None else cls(file, start, array.dtype, array.shape, array.strides)

    def open(self) -> np.ndarray:
        """The array, read-only."""
        if isinstance(self.file, str | os.PathLike):
            whole = np.memmap(self.file, np.uint8, mode="r")
        else:
            with os.fdopen(self.file.detach(), "rb") as file:
                whole = np.memmap(file, np.uint8, mode="r")
        return np.ndarray(self.shape, self.dtype, whole, self.start, self.strides)


class Shared:
    """What may hold arrays in files, which a copy of it in another process opens anew."""

    def __getstate__(self) -> dict[str, Any]:
        own = vars(self).items()
        return {key: (InFile.of(value) or value) if isinstance(value, np.memmap) else value for key, value in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({key: value.open() if isinstance(value, InFile) else value for key, value in state.items()})
