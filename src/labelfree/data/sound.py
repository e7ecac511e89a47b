"""Recordings: what a file or an array says of itself, and any stretch of it as one channel at one rate.

An item is encoded (a path, or bytes), an array (T,) or with channels, an array with its rate, or a dictionary
{"array", "sampling_rate"} as Hugging Face decodes it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelfree.data.encoded import Kind
from labelfree.errors import LabelfreeError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf")
RECORDINGS = Kind("recordings", SUFFIXES, ("audio", "sound", "speech", "recording", "wav", "x", "data"), "Audio")
#: More channels than this are taken for time.
MOST_CHANNELS = 64
#: Samples of a channel that are read at a time where a whole recording need not be in memory.
PIECE = 1 << 20
#: Samples that a file says to have which does not know.
UNTOLD = (1 << 63) - 1


@dataclass(frozen=True)
class Header:
    """What a recording says of itself: samples a second, samples of a channel, channels."""

    rate: int
    frames: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def _soundfile() -> Any:
    return _needed("soundfile")


def _needed(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise LabelfreeError(
            f"Recordings need the package '{name}', which is not installed.",
            "Install it: pip install soundfile soxr.",
        ) from None


def looks_like_recording(start: bytes) -> bool:
    """Whether the first twelve bytes are those of a WAV, W64, FLAC, Ogg, MP3, AIFF, CAF or AU file."""
    if start[:4] in (b"RIFF", b"RF64"):
        return start[8:12] == b"WAVE"
    if start[:4] == b"FORM":
        return start[8:12] in (b"AIFF", b"AIFC")
    mp3 = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE6 == 0xE2  # a frame of MPEG layer III
    return mp3 or start.startswith((b"fLaC", b"OggS", b"ID3", b".snd", b"caff", b"riff\x2e\x91\xcf\x11"))


def header(item: Any, rate: int) -> Header:
    """What an item says of itself; `rate` is that of arrays that say nothing. Raises whatever a damaged file raises."""
    if isinstance(item, Exception):
        raise item
    if isinstance(item, bytes | memoryview | Path):
        info = _soundfile().info(_file(item))
        if info.samplerate <= 0:
            raise ValueError(f"says it has {info.samplerate} samples a second")
        _check_length(info.frames)
        return Header(info.samplerate, info.frames, info.channels)
    wave, rate = _array(item, rate)
    return Header(rate, *wave.shape)


def _check_length(frames: int) -> None:
    """Raises ValueError where a file does not know its length: its last samples cannot be had from the library."""
    if frames == UNTOLD:
        raise ValueError("does not say how long it is, as a stream that went through a pipe: convert it to a file")


def decode(item: Any, rate: int, usual: int, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """A stretch of an item as float32 (T,) within ±1: channels averaged, resampled.

    Args:
        item: a recording.
        rate: samples a second that are wanted.
        usual: those of arrays that say nothing.
        start, seconds: of the stretch; None for all that follows.

    Raises:
        ValueError: nothing in it, values that are no numbers, or a whole recording without a sound (a stretch may be
            a pause). Damaged files raise what their decoder does.
    """
    wave, own = _stretch(item, usual, start, seconds)
    if not len(wave):
        raise ValueError("holds no sound")
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1, dtype=np.float32)
    if own != rate:
        mono = _needed("soxr").resample(mono, own, rate)
    if not len(mono):
        raise ValueError("holds no sound")
    low, high = float(mono.min()), float(mono.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("holds values that are not numbers")
    if high == low and seconds is None:
        raise ValueError("is silent")
    peak = max(high, -low)
    return mono / peak if peak > 1 else mono


def is_silent(item: Any, usual: int) -> bool:
    """Whether a recording is without a sound from end to end; a file is read no further than to its first."""
    if not isinstance(item, bytes | memoryview | Path):
        return is_flat(_stretch(item, usual, 0.0, None)[0])
    with _soundfile().SoundFile(_file(item)) as file:
        return all(is_flat(piece) for piece in file.blocks(PIECE, dtype="float32", always_2d=True))


def is_flat(wave: np.ndarray) -> bool:
    """Whether (T,) or (T, C) values are all one where channels are averaged."""
    return bool(np.ptp(wave.reshape(len(wave), -1).mean(axis=1)) == 0)


def _stretch(item: Any, usual: int, start: float, seconds: float | None) -> tuple[np.ndarray, int]:
    """(T, C) float32 values and their rate."""
    if isinstance(item, Exception):
        raise item
    if isinstance(item, bytes | memoryview | Path):
        with _soundfile().SoundFile(_file(item)) as file:
            _check_length(file.frames)
            if start:
                file.seek(min(round(start * file.samplerate), file.frames))
            count = -1 if seconds is None else round(seconds * file.samplerate)
            return _samples(file, count), file.samplerate
    wave, rate = _array(item, usual)
    first = round(start * rate)
    stretch = wave[first : None if seconds is None else first + round(seconds * rate)]
    return (_whole_numbers(stretch, wave) if wave.dtype.kind in "ui" else _floats(stretch)), rate


def _samples(file: Any, count: int) -> np.ndarray:
    """(T, C) float32 of the samples that follow, at most `count`; all for -1.

    Those of 16 bits are read as they are and then scaled, which takes less time than to have the library scale them.
    """
    if file.subtype == "PCM_16":
        return file.read(count, dtype="int16", always_2d=True) * np.float32(2.0**-15)
    return file.read(count, dtype="float32", always_2d=True)


def _file(item: bytes | memoryview | Path) -> Any:
    return item if isinstance(item, Path) else io.BytesIO(item)


def _array(item: Any, rate: int) -> tuple[np.ndarray, int]:
    """(T, C) values of an item that is in memory, and its rate. Raises ValueError where it is no recording."""
    if isinstance(item, dict) and "array" in item:
        item, rate = item["array"], int(item.get("sampling_rate", rate))
    elif isinstance(item, tuple) and len(item) > 1 and np.ndim(item[1]) == 0 and np.ndim(item[0]) > 0:
        item, rate = item[0], int(item[1])
    if hasattr(item, "detach"):
        item = item.detach().cpu().numpy()
    wave = np.asarray(item)
    if wave.dtype.kind not in "iuf" or wave.ndim not in (1, 2):
        raise ValueError(f"is {type(item).__name__} {wave.shape}, not a recording")
    if rate <= 0:
        raise ValueError(f"says it has {rate} samples a second")
    if wave.ndim == 1:
        wave = wave[:, None]
    return (wave.T if len(wave) <= MOST_CHANNELS < wave.shape[1] else wave), rate


def _whole_numbers(stretch: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float32 within ±1. Wide integers in which the whole recording fits into 16 bits hold samples of 16 bits."""
    bits = np.iinfo(whole.dtype).bits
    if whole.dtype.kind == "u":
        half = 2.0 ** (bits - 1)
        return ((stretch - half) / half).astype(np.float32)
    if bits > 16 and whole.size and whole.min() >= -(1 << 15) and whole.max() < 1 << 15:
        bits = 16
    return (stretch / 2.0 ** (bits - 1)).astype(np.float32)


def _floats(wave: np.ndarray) -> np.ndarray:
    """float32 as they are, without NaN at the end (padding)."""
    known = np.flatnonzero(~np.isnan(wave).all(axis=1))
    return wave[: known[-1] + 1 if len(known) else 0].astype(np.float32)


def player(wave: np.ndarray, rate: int) -> bytes:
    """(T,) values within ±1 as an MP3 file, which every browser plays."""
    buffer = io.BytesIO()
    usual = next((r for r in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000) if r >= rate), 48000)
    if usual != rate:
        wave = _needed("soxr").resample(wave, rate, usual)
    _soundfile().write(buffer, wave, usual, format="MP3")
    return buffer.getvalue()
