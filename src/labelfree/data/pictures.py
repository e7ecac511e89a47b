"""Pictures: decoding files of any usual kind, and bringing them to the one compact form that a source is kept in."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from labelfree.errors import LabelfreeError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
#: More frames of one band each than this are a film, not bands.
MOST_BANDS = 64
#: A value that is farther from all others than so many times what they span stands for "no data" (-9999, -3.4e38),
#: where the others are at least so many different ones.
FAR, VARIED = 2, 16
#: Values of a picture that say what the others may be.
ENOUGH = 1 << 20
#: ITU-R BT.601 luma, as Pillow and torchvision use it.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Encoded = bytes | memoryview | Path


@dataclass(frozen=True)
class Header:
    """What a picture's first bytes, or its array, say: true size in pixels, channels, and its values' type."""

    width: int
    height: int
    channels: int
    dtype: str


@dataclass(frozen=True)
class Form:
    """How the pictures of a source are kept: (channels, height, width) of 8 or 16 bits.

    Attributes:
        low, high: the source's values that are kept as 0 and as the largest integer (8-bit sources: 0 and 255).
    """

    channels: int
    height: int
    width: int
    bits: int = 8
    low: float = 0.0
    high: float = 255.0

    @property
    def top(self) -> int:
        """The largest integer."""
        return 2**self.bits - 1


class Sized(Protocol):
    """What a header says of pictures, or of frames."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def channels(self) -> int: ...


def common_shape(headers: Sequence[Sized], channels: int | None, store: int, name: str) -> tuple[int, int, int]:
    """(channels, height, width) that keep what all have, at sides of at most `store`.

    Args:
        headers: of some pictures or films.
        channels: that they are brought to; None for what they have.
        store: largest side.
        name: what they are, in the plural.

    Raises:
        LabelfreeError: they differ in channels in a way that cannot be brought together.
    """
    counts = Counter(found.channels for found in headers)
    if channels is None:
        if len(counts) > 1 and not set(counts) <= {1, 3, 4}:
            kinds = ", ".join(f"{count} with {c}" for c, count in counts.most_common())
            raise LabelfreeError(
                f"The {name} differ in their channels: {kinds}.", f"Set channels, or separate the {name}."
            )
        channels = 3 if len(counts) > 1 else next(iter(counts))
    sizes = {(found.height, found.width) for found in headers}
    largest = max(max(size) for size in sizes)
    side = min(store, largest)
    height, width = next(iter(sizes)) if len(sizes) == 1 and largest <= store else (side, side)
    return channels, height, width


def looks_like_picture(start: bytes) -> bool:
    """Whether the first bytes are those of a JPEG, PNG, WebP, TIFF or BMP file."""
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM")) or (
        start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    )


def is_encoded(item: Any) -> TypeGuard[Encoded]:
    """Whether an item is a file's path or bytes, rather than a picture in memory."""
    return isinstance(item, bytes | memoryview | Path)


def _open(encoded: Encoded) -> Image.Image:
    return Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded))


def _bands(image: Image.Image) -> int:
    """Frames of a TIFF that are the bands of one picture; 1 for other pictures."""
    frames = getattr(image, "n_frames", 1)
    single = image.format == "TIFF" and image.mode in ("L", "I;16", "I;16B", "I", "F")
    return frames if single and 1 < frames <= MOST_BANDS else 1


def header(encoded: Encoded) -> Header:
    """Read only as far as the size. Raises OSError or ValueError for what is no picture."""
    with _open(encoded) as image:
        # as it is stored: the size that Pillow says of a TIFF file is upright in some of its versions
        tags = getattr(image, "tag_v2", {})
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        # a PNG file's own method would decode it, to look for a note behind its pixels
        if Image.Image.getexif(image).get(0x0112, 1) >= 5:
            width, height = height, width
        channels = {"1": 1, "L": 1, "LA": 1, "La": 1, "F": 1}.get(image.mode, 1 if image.mode.startswith("I") else 3)
        kind = {"F": "float32", "I": "int32"}.get(image.mode, "uint16" if image.mode.startswith("I;16") else "uint8")
        return Header(width, height, channels * _bands(image), kind)


def decode(encoded: Encoded, side: int = 0, alpha: bool = False) -> np.ndarray:
    """(H, W, C) the picture, upright, in its own type (Pillow reads several channels of 16 bits at 8).

    Args:
        encoded: the file's path, or its bytes.
        side: JPEG files may be decoded smaller (faster), but not below this height or width; 0 for whole.
        alpha: keep a transparency channel; else the picture is laid on white.

    Raises:
        OSError, ValueError, SyntaxError: truncated, or not a picture.
    """
    with _open(encoded) as image:
        if side and image.format in ("JPEG", "MPO"):
            image.draft(None, (side, side))
        bands = _bands(image)
        if bands > 1:
            return _stack(image, bands)
        image.load()
        return _array(ImageOps.exif_transpose(image), alpha)


def _array(image: Image.Image, alpha: bool) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode in ("I", "F", "L"):
        return np.asarray(image)[..., None]
    if mode == "1":
        return np.asarray(image.convert("L"))[..., None]
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = mode in ("LA", "La")
        image = image.convert("RGBA")
        if alpha:
            return np.asarray(image.convert("LA") if grey else image)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if grey else "RGB")
        return np.atleast_3d(np.asarray(image))
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _stack(image: Image.Image, bands: int) -> np.ndarray:
    planes = []
    for band in range(bands):
        image.seek(band)
        planes.append(_array(image, alpha=False)[..., 0])
    return np.stack(planes, axis=-1)


def keep(picture: np.ndarray, form: Form) -> np.ndarray:
    """(H, W[, C]) of any type → (form.channels, form.height, form.width) in the form's integers.

    Raises:
        ValueError: its channels cannot become the form's, or none of its values is a number.
    """
    picture = with_channels(picture if picture.ndim == 3 else picture[..., None], form.channels)
    small = picture.shape[:2] == (form.height, form.width)
    if picture.dtype == np.uint8 and form.bits == 8:
        kept = picture if small else _resize_bytes(picture, form)
    else:
        unit = _to_unit(picture, form)
        kept = np.rint((unit if small else _resize(unit, form)).clip(0, 1) * form.top)
    return np.ascontiguousarray(kept.transpose(2, 0, 1), dtype=np.uint8 if form.bits == 8 else np.uint16)


def with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) → (H, W, channels): grey becomes colour by repetition, colour becomes grey by luma. The last of two or
    of four channels is how solid the picture is; one that says nothing of it is so everywhere.
    """
    found = picture.shape[2]
    if found == channels:
        return picture
    if found == 2 and channels == 4:
        return np.concatenate([np.repeat(picture[..., :1], 3, axis=2), picture[..., 1:]], axis=2)
    if found in (1, 3) and channels in (found + 1, 4):
        solid = np.full_like(picture[..., :1], np.iinfo(picture.dtype).max if picture.dtype.kind in "ui" else 1)
        return np.concatenate([with_channels(picture, channels - 1), solid], axis=2)
    if found == 1:
        return np.repeat(picture, channels, axis=2)
    if found == 3 and channels == 1:
        return (picture.astype(np.float32) @ LUMA).astype(picture.dtype)[..., None]
    if found == 4 and channels in (1, 3):
        return with_channels(picture[..., :3], channels)
    raise ValueError(f"has {found} channels where {channels} were expected")


def _to_unit(picture: np.ndarray, form: Form) -> np.ndarray:
    low, high = form.low, form.high
    if picture.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif form.bits == 8 and picture.dtype.kind in "ui":
        low, high = value_range(np.array([0, np.iinfo(picture.dtype).max]))
    elif form.bits == 8:
        low, high = value_range(picture)
    if picture.dtype.kind == "f" and not np.isfinite(picture).any():
        raise ValueError("holds no numbers")
    with np.errstate(over="ignore"):
        # cut before it is resized, so that a value far off does not spread
        cut = picture.astype(np.float32).clip(low, high)
    unit = (cut - low) / max(high - low, 1e-12)
    return np.nan_to_num(unit, copy=False)


def some_values(picture: np.ndarray) -> np.ndarray:
    """A picture's values, or of a large one a million or two from all over it: enough to know their range."""
    return picture.reshape(-1)[:: picture.size // ENOUGH | 1]  # an odd step meets all columns


def value_range(values: np.ndarray) -> tuple[float, float]:
    """The values that stand for black and white: whole bits for unsigned integers, 0–1, 0–255, else the extremes."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return 0.0, 1.0
    if values.dtype.kind in "ui" and finite.min() >= 0:
        return 0.0, float(2 ** max(int(finite.max()).bit_length(), 1) - 1)
    low, high = _extremes(finite)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and 128 <= high <= 255:
        return 0.0, 255.0
    return low, high


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest value, but for those that stand for "no data"."""
    while True:
        low, high = float(values.min()), float(values.max())
        others = values[(values > low) & (values < high)]
        if len(np.unique(others[:: 1 + others.size // (1 << 16)])) < VARIED:
            return low, high
        least, most = float(others.min()), float(others.max())
        kept_low = low if least - low <= FAR * (most - least) else least
        kept_high = high if high - most <= FAR * (most - least) else most
        if (kept_low, kept_high) == (low, high):
            return low, high
        values = values[(values >= kept_low) & (values <= kept_high)]


def _resize_bytes(picture: np.ndarray, form: Form) -> np.ndarray:
    if picture.shape[2] not in (1, 3):
        return np.rint(_resize(picture.astype(np.float32), form).clip(0, 255))
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    small = image.resize((form.width, form.height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.atleast_3d(np.asarray(small))


def _resize(picture: np.ndarray, form: Form) -> np.ndarray:
    size = (form.width, form.height)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in picture.transpose(2, 0, 1)]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=-1)


def as_array(item: Any, alpha: bool = False) -> np.ndarray:
    """A Pillow image, as `decode` reads one, numpy array or torch tensor as (H, W, C); tensors come channels first.

    Raises:
        ValueError: something else.
    """
    if isinstance(item, Image.Image):
        return _array(ImageOps.exif_transpose(item), alpha)
    if hasattr(item, "detach") and hasattr(item, "numpy"):
        tensor = item.detach().cpu()
        return (tensor if tensor.ndim == 2 else tensor.permute(1, 2, 0)).numpy()
    if isinstance(item, np.ndarray) and item.ndim in (2, 3) and item.dtype.kind in "uifb":
        if item.ndim == 3 and item.shape[0] in (1, 3, 4) and item.shape[2] not in (1, 3, 4):
            return item.transpose(1, 2, 0)
        return item
    raise ValueError(f"is {type(item).__name__}, not a picture")


def thumbnail(picture: np.ndarray, aspect: float, side: int) -> bytes:
    """PNG of (C, H, W) 8- or 16-bit values with its true aspect ratio (width / height), at most `side` pixels."""
    shown = picture[:3] if len(picture) >= 3 else picture[:1]
    values = (shown >> 8).astype(np.uint8) if shown.dtype == np.uint16 else shown
    image = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    width, height = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    buffer = io.BytesIO()
    image.resize((max(width, 1), max(height, 1)), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
