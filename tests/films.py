"""Small films for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def ramp(frames: int, side: int = 32, low: int = 40, high: int = 200) -> np.ndarray:
    """(T, side, side, 3) uint8: each frame of one grey that rises from the first to the last."""
    grey = np.linspace(low, high, frames).round().astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (frames, side, side, 3)).copy()


def write(
    path: Path,
    frames: np.ndarray,
    rate: int = 10,
    codec: str = "libx264",
    keys: int = 20,
    times: Sequence[int] | None = None,
) -> Path:
    """Encode (T, H, W, 3) uint8 frames, a key frame in every `keys`, at `times` in units of 1/rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.gop_size, stream.thread_count = keys, 1
        if codec == "libx264":
            stream.options = {"preset": "ultrafast"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound_only(path: Path) -> Path:
    """An .mp4 file without any picture in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
