"""Films: what a file, a folder of frames or an array says of itself, and chosen frames of it in one compact form.

An item is encoded (a path, or bytes), a tuple of the paths of its frames, or an array (T, H, W[, C]).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelfree.data import pictures
from labelfree.data.pictures import Form, keep
from labelfree.errors import LabelfreeError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")
#: Containers whose times cannot be trusted, least of all after seeking: frames are counted from the beginning.
UNTIMED = ("mpeg", "mpegvideo")
#: Frames that are decoded and thrown away rather than sought past: a small part of a group of pictures.
GAP = 48


@dataclass(frozen=True)
class Header:
    """What a film says of itself.

    Attributes:
        width, height: in square pixels, upright.
        channels: of a frame.
        dtype: of its values.
        frames: how many there are.
        rate: frames a second; 0 where nobody says (folders of frames, arrays).
        start: time of the first frame, in seconds.
        timed: whether frames can be told by their times; else by their number.
    """

    width: int
    height: int
    channels: int
    dtype: str
    frames: int
    rate: float = 0.0
    start: float = 0.0
    timed: bool = True


def library() -> Any:
    """The `av` package. Raises LabelfreeError where it is not installed."""
    try:
        import av
    except ImportError:
        raise LabelfreeError(
            "Films need the package 'av', which is not installed.", "Install it: pip install av."
        ) from None
    return av


def header(item: Any) -> Header:
    """Read no further than needed. Raises ValueError or the decoder's error for what is no film."""
    if isinstance(item, Path):
        state = item.stat()
        return _header_of_file(item, state.st_mtime_ns, state.st_size)
    if isinstance(item, bytes | memoryview):
        return _header(item)
    if isinstance(item, tuple):
        first = pictures.header(item[0])
        return Header(first.width, first.height, first.channels, first.dtype, len(item))
    film = as_film(item)
    return Header(film.shape[2], film.shape[1], film.shape[3], str(film.dtype), len(film))


def as_film(item: Any) -> np.ndarray:
    """An array or tensor as (T, H, W, C), whichever axis after the first has its channels.

    Raises:
        ValueError: it has other axes, or no numbers.
    """
    film = item.detach().cpu().numpy() if hasattr(item, "detach") else np.asarray(item)
    if film.ndim not in (3, 4) or film.dtype.kind not in "uifb" or min(film.shape) == 0:
        raise ValueError(f"is of shape {film.shape}, not frames (T, H, W) or (T, H, W, C)")
    if film.ndim == 3:
        return film[..., None]
    return np.moveaxis(film, 1, 3) if film.shape[1] in (1, 3, 4) and film.shape[3] not in (1, 3, 4) else film


@lru_cache(1 << 16)
def _header_of_file(path: Path, changed: int, size: int) -> Header:
    return _header(path)


def _open(encoded: bytes | memoryview | Path) -> Any:
    return library().open(str(encoded) if isinstance(encoded, Path) else io.BytesIO(encoded))


def _header(encoded: bytes | memoryview | Path) -> Header:
    try:
        return _read_header(encoded)
    except library().FFmpegError as error:
        raise ValueError(error.strerror or str(error)) from None


def _read_header(encoded: bytes | memoryview | Path) -> Header:
    with _open(encoded) as container:
        if not container.streams.video:
            raise ValueError("has no video stream")
        stream = container.streams.video[0]
        frames, rate = int(stream.frames), float(stream.average_rate or 0)
        start = float((stream.start_time or 0) * stream.time_base)
        if not frames or not rate:
            frames, rate, start = _by_packets(container, stream)
        context = stream.codec_context
        shape = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = round(context.width * shape), context.height
        if frames and _rotation(container, stream) % 2:
            width, height = height, width
        channels = 1 if (context.pix_fmt or "").startswith("gray") else 3
        timed = container.format.name not in UNTIMED
        return Header(width, height, channels, "uint8", frames, rate, start, timed)


def _by_packets(container: Any, stream: Any) -> tuple[int, float, float]:
    """Frames, rate and first time where the file does not state them, or wrongly (MPEG program streams)."""
    marks = [packet.pts for packet in container.demux(stream) if packet.size]  # of packets themselves, none is kept
    times = sorted(float(mark * stream.time_base) for mark in marks if mark is not None)
    container.seek(0)
    if len(times) < 2 or times[-1] <= times[0]:
        return len(marks), float(stream.guessed_rate or 25), 0.0
    return len(marks), (len(marks) - 1) / (times[-1] - times[0]), times[0]


def _rotation(container: Any, stream: Any) -> int:
    """Quarter turns to the left that bring the first frame upright (telephones note how they were held)."""
    for frame in container.decode(stream):
        return round(getattr(frame, "rotation", 0) / 90) % 4
    return 0


def frames(item: Any, found: Header, places: Sequence[int], form: Form) -> Iterator[np.ndarray]:
    """(form.channels, form.height, form.width) frames at the rising `places`; fewer where the film ends early.

    Raises:
        ValueError, or the decoder's error: what is damaged, after the frames before it.
    """
    if isinstance(item, tuple):
        side = max(form.height, form.width)
        yield from (keep(pictures.decode(item[place], side), form) for place in places)
    elif isinstance(item, Path | bytes | memoryview):
        for run in _runs(places):
            yield from _decoded(item, found, run, form)
    else:
        film = as_film(item)
        yield from (keep(np.asarray(film[place]), form) for place in places)


def _runs(places: Sequence[int]) -> Iterator[Sequence[int]]:
    """Rising places in stretches without large gaps."""
    cuts = np.flatnonzero(np.diff(places) > GAP) + 1
    for run in np.split(np.asarray(places), cuts):
        yield run.tolist()


def _decoded(encoded: Any, found: Header, places: Sequence[int], form: Form) -> Iterator[np.ndarray]:
    """Frames by their times: the one within half a frame of what is wanted, or else the one that is shown till then."""
    av = library()
    shape = av.video.reformatter.VideoReformatter()
    wanted, still, end = list(reversed(places)), None, 0.0
    try:
        for time, frame in _from(encoded, found, places[0]):
            while wanted and time >= (wanted[-1] - 0.5) / found.rate:
                later = time > (wanted.pop() + 0.5) / found.rate
                yield _kept(shape, still if later and still is not None else frame, form)
            if not wanted:
                return
            still, end = frame, time + float((frame.duration or 0) * (frame.time_base or 0))
    except av.FFmpegError as error:
        raise ValueError(f"is damaged: {error.strerror or error}") from None
    while wanted and (wanted.pop() + 0.25) / found.rate < end:
        yield _kept(shape, still, form)


def _from(encoded: Any, found: Header, place: int) -> Iterator[tuple[float, Any]]:
    """(seconds since the first frame, frame), from a key frame at or before `place` on."""

    def time(number: int, frame: Any) -> float:
        return frame.time - found.start if found.timed and frame.time is not None else number / found.rate

    with _open(encoded) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # readers run side by side
        if found.timed and place > GAP:
            container.seek(int((place / found.rate + found.start) / stream.time_base), stream=stream)
            first = next(container.decode(stream), None)
            if first is not None and first.time is not None and time(0, first) <= (place + 0.5) / found.rate:
                yield time(0, first), first
                yield from ((time(0, frame), frame) for frame in container.decode(stream))
                return
            container.seek(0)  # it went too far: from the beginning
        yield from ((time(number, frame), frame) for number, frame in enumerate(container.decode(stream)))


def _kept(shape: Any, frame: Any, form: Form) -> np.ndarray:
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    width, height = (form.height, form.width) if turns % 2 else (form.width, form.height)
    grey = form.channels == 1
    small = shape.reformat(frame, width, height, format="gray" if grey else "rgb24", interpolation="BICUBIC")
    upright = np.rot90(np.atleast_3d(small.to_ndarray()), turns)
    return np.ascontiguousarray(upright.transpose(2, 0, 1))


def moving(film: np.ndarray, aspect: float, side: int, seconds: float) -> bytes:
    """Animated WebP of (T, C, H, W) 8- or 16-bit values with true aspect ratio, at most `side` pixels, in a loop.

    Args:
        aspect: width / height.
        seconds: of one frame.
    """
    width, height = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    values = (film >> 8).astype(np.uint8) if film.dtype == np.uint16 else film
    shown = values[:, :3] if values.shape[1] >= 3 else values[:, :1].repeat(3, axis=1)
    frames = [
        Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).resize((max(width, 1), max(height, 1)))
        for frame in shown
    ]
    buffer = io.BytesIO()
    duration = max(40, round(1000 * seconds))
    frames[0].save(buffer, "WebP", save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=60)
    return buffer.getvalue()
