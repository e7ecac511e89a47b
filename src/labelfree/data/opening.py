"""How a source of encoded items is opened, whatever form it has: one way for pictures, recordings and films."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data import sources
from labelfree.data.encoded import Files, HuggingFace, Kind, Source, open_folder, open_table
from labelfree.data.named import open_listed
from labelfree.errors import LabelfreeError
from labelfree.files import existing


@dataclass(frozen=True)
class Opener:
    """What differs between kinds where a source is opened.

    Attributes:
        kind: what is encoded.
        arrays: of (arrays by name, column, what to call them in errors).
        items: of a list, or a map-style dataset.
        looks_like: of the first bytes of a file: whether it is one of this kind. None: its name tells.
        header: of a file; raises whatever a damaged one raises.
        wanted: what a person may give, in words.
    """

    kind: Kind
    arrays: Callable[[Mapping[str, np.ndarray], str, object], Source]
    items: Callable[[Any], Source]
    looks_like: Callable[[bytes], bool] | None
    header: Callable[[Path], Any]
    wanted: str

    def open(self, source: Any, column: str) -> Source:
        """The source that `source` is. Raises LabelfreeError where it is missing, empty or of another kind."""
        if isinstance(source, str | Path):
            return self._open_once(existing(source), column)
        if (paths := sources.listed_files(source, self.kind.suffixes)) is not None:
            return Files(paths, sources.common_folder(paths))
        if isinstance(source, np.ndarray) or type(source).__module__ == "torch":
            array = source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()
            return self.arrays({"": array}, "auto", "the array")
        if isinstance(source, Mapping) and all(hasattr(v, "ndim") or np.isscalar(v) for v in source.values()):
            return self.arrays({key: np.asarray(value) for key, value in source.items()}, column, "the arrays")
        if sources.is_hugging_face(source):
            return HuggingFace(source, self.kind, column)
        if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
            return self.items(source)
        raise LabelfreeError(f"A {type(source).__name__} is no source of {self.kind.name}.", f"Give {self.wanted}.")

    def _open_once(self, path: Path, column: str) -> Source:
        """The source at a path, or that which was opened there before, where it is a file that did not change."""
        key = (str(path.resolve()), self.kind.name, column, path.stat().st_mtime_ns)
        opened = _open_paths.get(key) if path.is_file() else None
        if opened is None:
            opened = _open_paths[key] = self._open_path(path, column)
        return opened

    def _open_path(self, path: Path, column: str) -> Source:
        if path.is_dir():
            return open_folder(path, self.kind, column)
        if path.suffix.lower() in sources.ARRAYS:
            return self.arrays(sources.load_arrays(path), column, path)
        if (listed := open_listed(path, self.kind, column)) is not None:
            return listed
        if (table := open_table(path, self.kind, column)) is not None:
            return table
        named = path.suffix.lower() in self.kind.suffixes
        if self.looks_like(_start_of(path)) if self.looks_like else named:
            return Files([path], path.parent)
        if named:
            raise sources.misnamed(path, f"a {self.kind.name.removesuffix('s')}", lambda: self.header(path))
        raise LabelfreeError(
            f"'{path}' is no source of {self.kind.name}: a folder, Parquet, Arrow, .npy, .npz or a file ending in "
            f"{', '.join(self.kind.suffixes)} was expected."
        )


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


#: Sources that are open, by path, kind, column and time of change: opening one again costs nothing.
_open_paths: weakref.WeakValueDictionary[tuple[str, str, str, int], Source] = weakref.WeakValueDictionary()
