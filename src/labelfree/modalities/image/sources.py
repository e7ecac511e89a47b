"""Where pictures come from: folders, tables, arrays, and map-style datasets, each as encoded items by index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data import sources
from labelfree.data.encoded import Kind, Source, choose_column, encoded_columns, turn_of
from labelfree.data.named import recognise_listed
from labelfree.data.once import kept
from labelfree.data.opening import Opener
from labelfree.data.pictures import SUFFIXES, as_array, header, looks_like_picture
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError

PICTURES = Kind("pictures", SUFFIXES, ("image", "images", "img", "picture", "x", "data"), "Image")


class Arrays(Source):
    """One array of pictures, in memory or mapped, with arrays of the same length as columns."""

    def __init__(self, pictures: np.ndarray, columns: dict[str, np.ndarray] | None = None) -> None:
        self.pictures = _channels_last(pictures)
        self._columns = columns or {}
        shape = "×".join(str(side) for side in self.pictures.shape[1:3])
        self.words = f"array of {self.pictures.dtype} pictures of {shape}"

    def __len__(self) -> int:
        return len(self.pictures)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [np.asarray(self.pictures[index]) for index in indices]

    @kept
    def fingerprint(self) -> str:
        some = spaced(len(self), 256)
        return sources.hash_of(self.pictures.shape, self.pictures.dtype, np.asarray(self.pictures[some]))

    def columns(self) -> list[str]:
        return list(self._columns)

    def column(self, name: str) -> np.ndarray:
        return self._columns[name]


def could_be_pictures(shape: Sequence[int], kind: str) -> bool:
    """Whether an array of this shape and dtype kind can be read as (N, H, W[, C])."""
    return kind in "uif" and (len(shape) == 3 or (len(shape) == 4 and min(shape[1], shape[3]) <= 64))


def _channels_last(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, C), whichever of the second and last axis is the channels: a usual count of them, else the smaller."""
    if pictures.ndim == 3:
        return pictures[..., None]
    first, last = pictures.shape[1], pictures.shape[3]
    usual = (1, 2, 3, 4)
    channels_first = (first in usual and last not in usual) or (last not in usual and first < last)
    return np.moveaxis(pictures, 1, 3) if channels_first else pictures


def from_arrays(arrays: Mapping[str, np.ndarray], wanted: str, where: object) -> Arrays:
    """The pictures among named arrays, and the others of that length as columns. Raises LabelfreeError."""
    names = [name for name, array in arrays.items() if could_be_pictures(array.shape, array.dtype.kind)]
    four = [name for name in names if arrays[name].ndim == 4]
    flat = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "uif"]
    if not names and wanted == "auto" and len(flat) == 1:
        found = tuple(arrays[flat[0]].shape)
        raise LabelfreeError(
            f"Pictures are (N, H, W) or (N, H, W, C); the array is {found}.", "Give each its rows: x.reshape(-1, H, W)."
        )
    name = choose_column(four if len(four) == 1 and wanted == "auto" else names, wanted, where, PICTURES)
    pictures = arrays[name]
    columns = {k: np.asarray(v) for k, v in arrays.items() if k != name and v.ndim == 1 and len(v) == len(pictures)}
    return Arrays(pictures, columns)


class Items(Source):
    """A map-style torch dataset or a list: items are pictures, or tuples that begin with one."""

    def __init__(self, items: Any) -> None:
        self._items, self._turn = items, turn_of(items)
        self.words = f"items of a {type(items).__name__}"

    def __len__(self) -> int:
        return len(self._items)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [self._picture(index) for index in indices]

    def _picture(self, index: int) -> Any:
        return first_of(self._item(index))

    def _item(self, index: int) -> Any:
        try:
            with self._turn:
                return self._items[index]
        except Exception as error:  # a user's dataset may raise anything
            return error

    @kept
    def fingerprint(self) -> str:
        some = spaced(len(self), 32).tolist()
        items = self.fetch(some)
        return sources.hash_of(len(self), *(str(i) if isinstance(i, Exception) else np.asarray(i) for i in items))

    def _labels(self) -> Any:
        for name in ("targets", "labels", "y"):
            values = getattr(self._items, name, None)
            if values is not None and len(values) == len(self):
                return np.asarray(values)
        return None

    def columns(self) -> list[str]:
        if self._labels() is not None:
            return ["label"]
        items = map(self._item, range(len(self)))
        first = next((item for item in items if not isinstance(item, Exception)), None)
        return ["label"] if isinstance(first, tuple | list) and len(first) > 1 and np.ndim(first[1]) == 0 else []

    def column(self, name: str) -> np.ndarray:
        labels = self._labels()
        if labels is not None:
            return labels
        items = map(self._item, range(len(self)))
        found = [None if isinstance(item, Exception) else item[1] for item in items]  # without a label
        return np.array(found, dtype=object) if None in found else np.array(found)


def first_of(item: Any) -> Any:
    """The picture of an item: itself, the first of a tuple, or the likely entry of a dictionary."""
    if isinstance(item, dict):
        return next((item[key] for key in ("image", "img", "pixel_values", "picture") if key in item), None)
    return item[0] if isinstance(item, tuple | list) else item


OPENER = Opener(
    kind=PICTURES,
    arrays=from_arrays,
    items=Items,
    looks_like=looks_like_picture,
    header=header,
    wanted="a path, an array (N, H, W[, C]), a map-style dataset or a Hugging Face dataset",
)


def open_source(source: Any, column: str = "auto") -> Source:
    """The source that `source` is. Raises LabelfreeError where it is missing, empty or of another kind."""
    return OPENER.open(source, column)


# ---- guessing the kind of data


def recognise_path(path: Path) -> tuple[float, str]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return sources.recognise_folder(path, SUFFIXES, "picture", recognise_path)
    if not path.is_file():
        return 0.0, ""
    if suffix in SUFFIXES:
        return 0.95, "a picture file"
    if suffix in sources.ARRAYS:
        found = [recognise_array(a.shape, str(a.dtype)) for a in sources.load_arrays(path).values()]
        return max(found, default=(0.0, ""))
    if suffix in sources.BINARY:
        names = encoded_columns(sources.schema_of(path))
        return _recognise_column(path, names[0]) if names else recognise_listed(path, PICTURES)
    return recognise_listed(path, PICTURES)


def _recognise_column(path: Path, name: str) -> tuple[float, str]:
    """How sure that a column of bytes is of pictures: shapes on a map, or fingerprints, are bytes too."""
    if path.suffix.lower() in sources.ARROW:
        first = next((item for item in sources.read_head(path).column(name).slice(0, 16).to_pylist() if item), None)
        content = first.get("bytes") if isinstance(first, dict) else first
        if content and not looks_like_picture(bytes(content[:16])):
            return 0.0, ""
    return 0.9, f"pictures in column '{name}'"


def recognise_array(shape: tuple[int, ...], dtype: str) -> tuple[float, str]:
    words = f"an array of {'×'.join(map(str, shape))} {dtype}"
    if len(shape) not in (3, 4) or not could_be_pictures(shape, np.dtype(dtype).kind) or min(shape) < 1:
        return 0.0, ""
    if len(shape) == 4:
        return 0.9, words
    if dtype == "uint8":
        return 0.85, words
    return (0.55 if shape[1] == shape[2] and shape[1] >= 8 else 0.1), words


def recognise_items(source: Any) -> tuple[float, str]:
    try:
        picture = as_array(first_of(source[0]))
    except Exception:  # whatever it is, its first item is no picture
        return 0.0, ""
    if picture.ndim == 2 or picture.shape[2] > 16 or min(picture.shape[:2]) < 4 or not math.prod(picture.shape):
        return 0.3, f"{len(source):,} items of {picture.shape}"
    return 0.85, f"{len(source):,} pictures in a {type(source).__name__}"
