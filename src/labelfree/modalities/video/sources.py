"""Where films come from: files, tables, folders of frames, arrays; and the clips that they are cut into."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data import films, pictures, sources
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.encoded import Files, Kind, Source
from labelfree.data.films import Header
from labelfree.data.once import kept
from labelfree.data.opening import Opener
from labelfree.data.pictures import Form, common_shape, some_values, value_range
from labelfree.errors import LabelfreeError, reason_of
from labelfree.modalities.image.sources import Items
from labelfree.modalities.series.dataset import cut_windows

FILMS = Kind("films", films.SUFFIXES, ("video", "videos", "film", "clip", "mp4", "x", "data"), "Video")
#: Clips that there ought to be, so that they are cut to overlap where there would be fewer.
ENOUGH = 256
#: Threads that look into files.
LOOKING = 8


class FrameFolders(Files):
    """Folders whose pictures, in the order of their names (frame2 before frame10), are the frames of a film."""

    def __init__(self, folders: dict[Path, list[Path]], root: Path) -> None:
        super().__init__(list(folders), root)
        self._frames = [tuple(sorted(frames, key=_natural)) for frames in folders.values()]
        self.words = f"{len(folders):,} folders of frames"

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [self._frames[index] for index in indices]

    @kept
    def fingerprint(self) -> str:
        return sources.hash_files([path for frames in self._frames for path in frames], self.root)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]


class FilmItems(Items):
    """A list or an array of films, with arrays of the same length as columns."""

    def __init__(self, items: Any, columns: dict[str, np.ndarray] | None = None) -> None:
        super().__init__(items)
        self._columns = columns
        if hasattr(items, "shape"):
            self.words = f"an array of {'×'.join(map(str, items.shape))} {items.dtype}"

    def columns(self) -> list[str]:
        return super().columns() if self._columns is None else list(self._columns)

    def column(self, name: str) -> np.ndarray:
        return super().column(name) if self._columns is None else self._columns[name]


def from_arrays(arrays: Mapping[str, np.ndarray], wanted: str, where: object) -> FilmItems:
    """The films among named arrays: (N, T, H, W, C), or one (T, H, W, C). Raises LabelfreeError."""
    found = {name: array for name, array in arrays.items() if array.ndim in (4, 5) and array.dtype.kind in "uif"}
    five = [name for name, array in found.items() if array.ndim == 5]
    names = five if wanted == "auto" and len(five) == 1 else [name for name in found if wanted in ("auto", name)]
    if len(names) != 1:
        shapes = ", ".join(f"{name or 'it'} {array.shape}" for name, array in arrays.items())
        raise LabelfreeError(
            f"'{where}' should have one array of films (N, T, H, W, C), but has {shapes}.", "Name it: column=NAME."
        )
    chosen = found[names[0]]
    chosen = chosen if chosen.ndim == 5 else chosen[None]
    columns = {k: np.asarray(v) for k, v in arrays.items() if v.ndim == 1 and len(v) == len(chosen)}
    return FilmItems(chosen, columns)


OPENER = Opener(
    kind=FILMS,
    arrays=from_arrays,
    items=FilmItems,
    looks_like=None,
    header=films.header,
    wanted="a path, an array (N, T, H, W, C), a list of films or a Hugging Face dataset",
)


def open_source(source: Any, column: str) -> Source:
    """The source that `source` is. Raises LabelfreeError where it is missing, empty or of another kind."""
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    if path and path.is_dir() and not sources.list_files(path, films.SUFFIXES) and (folders := frame_folders(path)):
        return FrameFolders(folders, path)
    return OPENER.open(source, column)


def frame_folders(path: Path) -> dict[Path, list[Path]]:
    """Folders at or below `path` that hold two or more pictures, with these."""
    found: dict[Path, list[Path]] = {}
    for file in sources.list_files(path, pictures.SUFFIXES):
        found.setdefault(file.parent, []).append(file)
    return {folder: files for folder, files in found.items() if len(files) > 1}


def look_through(source: Source) -> tuple[dict[int, Header], list[Unreadable]]:
    """What each film says of itself, and those that are none (no picture in them, damaged, a single frame)."""

    def look(index: int) -> Header | Unreadable:
        try:
            item = source.fetch([index])[0]
            if isinstance(item, Exception):
                raise item
            found = films.header(item)
            if found.frames < 2:
                raise ValueError(f"has {found.frames} frame(s)")
            return found
        except LabelfreeError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            return Unreadable(index, source.name(index), reason_of(error))

    with ThreadPoolExecutor(LOOKING) as pool:
        looked = list(pool.map(look, range(len(source))))
    headers = {index: found for index, found in enumerate(looked) if isinstance(found, Header)}
    return headers, [found for found in looked if isinstance(found, Unreadable)]


def find_form(source: Source, headers: dict[int, Header], channels: int | None, store: int) -> Form:
    """The form that keeps what the films have, at sides of at most `store`. Raises LabelfreeError."""
    shape = common_shape(list(headers.values()), channels, store, "films")
    other = [index for index, found in headers.items() if found.dtype != "uint8"]
    if not other:
        return Form(*shape)
    values = []
    for item in source.fetch(other[:: max(1, len(other) // 16)]):
        with suppress(Exception):  # damaged files make decoders raise nearly anything; they are listed when read
            values.append(some_values(pictures.decode(item[0]) if isinstance(item, tuple) else films.as_film(item)))
    low, high = value_range(np.concatenate(values)) if values else (0.0, 1.0)
    return Form(*shape, bits=16, low=low, high=high)


@dataclass(frozen=True)
class Cut:
    """How films are cut into clips, counted in frames that are kept.

    Attributes:
        fps: frames kept a second; films without a rate, or with a lower one, keep every frame.
        span: frames of a clip.
        stride: frames from the start of one clip to that of the next.
    """

    fps: float
    span: int
    stride: int

    def every(self, film: Header) -> float:
        """Frames of the film to one that is kept."""
        return max(1.0, film.rate / self.fps)

    def kept(self, film: Header) -> int:
        """Frames of the film that are kept."""
        return int((film.frames - 1) / self.every(film)) + 1


def choose_cut(headers: dict[int, Header], fps: float, frames: int, span: int | None, stride: int | None) -> Cut:
    """The cut that was asked for; what is None is chosen: clips of two views' length, overlapping where few."""
    counts = np.array([Cut(fps, 1, 1).kept(found) for found in headers.values()])
    if span is None:
        span = max(2, min(2 * frames, int(np.median(counts))))
    if stride is None:
        # where whole clips would be few, they may overlap by all but half a view
        room = int((counts - span).clip(0).sum())
        stride = min(span, max(1, frames // 2, room // ENOUGH))
    return Cut(fps, span, stride)


class Clips(Dataset):
    """Clips of films: (T, C, H, W) uint8 or uint16, all of one size; `meta["aspect"]` is the true width / height.

    A film shorter than a clip holds its last frame; one shorter than half a clip is left out.
    """

    def __init__(
        self, source: Source, headers: dict[int, Header], form: Form, cut: Cut, unreadable: Sequence[Unreadable]
    ) -> None:
        self.source, self.headers, self.form, self.cut = source, headers, form, cut
        self.unreadable = [*source.closed, *unreadable]
        numbers = np.array(list(headers))
        counts = np.array([cut.kept(found) for found in headers.values()])
        spans = np.stack([np.zeros_like(counts), counts], axis=1)
        self._spans, owners = cut_windows(spans, cut.span, cut.stride)
        self._film = numbers[owners] if len(owners) else owners
        self.cut_from, self.stretches = self._film, self._spans
        self.left_out = len(numbers) - len(np.unique(owners))
        self.shards = np.flatnonzero(np.diff(self._film, prepend=-1)).tolist() or (0,)

    def __len__(self) -> int:
        return len(self._spans)

    def source_count(self) -> int:
        return len(self.source) + len(self.source.closed)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        wanted = np.asarray(indices, dtype=np.int64)
        found: dict[int, Sample | Unreadable] = {}
        for film in np.unique(self._film[wanted]).tolist():
            found |= self._of_film(film, sorted(set(wanted[self._film[wanted] == film].tolist())))
        return [found[index] for index in wanted.tolist()]

    def _of_film(self, film: int, indices: list[int]) -> dict[int, Sample | Unreadable]:
        """Clips of one film, each of its frames decoded once."""
        known = self.headers[film]
        places = {index: self._places(index, known) for index in indices}
        every = sorted(set().union(*places.values()))
        decoded: dict[int, np.ndarray] = {}
        reason = "ends before its time"
        try:
            item = self.source.fetch([film])[0]
            if isinstance(item, Exception):
                raise item
            for place, frame in zip(every, films.frames(item, known, every, self.form), strict=False):
                decoded[place] = frame
        except Exception as error:  # damaged files make decoders raise nearly anything
            reason = reason_of(error)
        group, aspect = zlib.crc32(self.source.name(film).encode()), known.width / known.height
        found: dict[int, Sample | Unreadable] = {}
        for index, own in places.items():
            there = [decoded[place] for place in own if place in decoded]
            if 2 * len(there) < len(own) or len(there) < 2:
                found[index] = Unreadable(index, self.name(index), reason)
                continue
            there += there[-1:] * (self.cut.span - len(there))
            found[index] = Sample(np.stack(there), index, group, meta={"aspect": aspect})
        return found

    def _places(self, index: int, film: Header) -> list[int]:
        """Numbers of the film's frames that a clip keeps."""
        start, stop = self._spans[index].tolist()
        every = self.cut.every(film)
        return [min(round(number * every), film.frames - 1) for number in range(start, stop)]

    def name(self, index: int) -> str:
        film = int(self._film[index])
        start, stop = self._spans[index].tolist()
        known = self.headers[film]
        if not known.rate:
            return f"{self.source.name(film)}, frames {start}–{stop - 1}"
        seconds = self.cut.every(known) / known.rate
        return f"{self.source.name(film)}, {start * seconds:.1f}–{stop * seconds:.1f} s"

    def columns(self) -> Sequence[str]:
        """Those of the source, and "film": which film a clip is from, to split by."""
        return [*self.source.columns(), *(["film"] if "film" not in self.source.columns() else [])]

    def column(self, name: str) -> np.ndarray:
        if name in self.source.columns():
            return self.source.column(name)[self._film]
        if name == "film":
            names = {film: self.source.name(film) for film in self.headers}
            return np.array([names[film] for film in self._film.tolist()], dtype=object)
        raise self.source.no_column(name)

    def fingerprint(self) -> str:
        return sources.hash_of(self.source.fingerprint(), self.form, self.cut, sorted(self.headers))

    def describe(self) -> Description:
        known = list(self.headers.values())
        seconds = sum(found.frames / found.rate for found in known if found.rate)
        sides = sorted({(found.width, found.height) for found in known}, key=lambda side: (side[0] * side[1], side))
        rates = sorted({round(found.rate, 1) for found in known if found.rate})
        facts = {"source": self.source.words, "films": f"{len(known):,} of {sum(f.frames for f in known):,} frames"}
        if seconds:
            facts["duration"] = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"
            facts["rate"] = (
                " … ".join(f"{rate:g}" for rate in dict.fromkeys((rates[0], rates[-1]))) + " frames a second"
            )
        facts["sizes"] = " … ".join("×".join(map(str, side)) for side in dict.fromkeys((sides[0], sides[-1])))
        facts["channels"] = f"{self.form.channels}"
        facts["clips"] = f"{self.cut.span} frames, a new one every {self.cut.stride}"
        facts["clips"] += f", at {self.cut.fps:g} a second" if seconds else ""
        facts["kept as"] = f"{self.cut.span}×{self.form.channels}×{self.form.height}×{self.form.width}"
        if self.left_out:
            facts["too short"] = f"{self.left_out:,} films"
        if self.unreadable:
            facts["unreadable"] = f"{len(self.unreadable):,} films"
        kept = [self.cut.kept(found) for found in known]
        values = {"height": [f.height for f in known], "width": [f.width for f in known], "length": kept}
        numbers = {name: float(np.median(found)) for name, found in values.items()}
        return Description("video", len(self), facts, numbers)
