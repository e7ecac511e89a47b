"""Series as samples: whole recordings, or windows of long ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labelfree.data.batch import Sample, Unreadable
from labelfree.data.columns import codes, group_numbers
from labelfree.data.dataset import Dataset, Description, no_column, seen_by_encoder
from labelfree.data.recordings import Recordings, majority


class SeriesDataset(Dataset):
    """Series, or windows of long recordings."""

    def __init__(self, source: Recordings, window: int, stride: int) -> None:
        self.source = source
        self.channels = self.value_names = source.channels
        self.unreadable = source.unreadable
        self.window = window
        self.spans, self.recording = cut_windows(source.spans, window, stride)
        self._file, self._pieces, self._begin = _files(source)
        self.cut_from = self._file[self.recording] if window or self._pieces.max(initial=1) > 1 else None
        self.stretches = self.spans
        self._groups = _group_numbers(source, self.spans, self.recording)

    def __len__(self) -> int:
        return len(self.spans)

    def source_count(self) -> int:
        return (len(set(self.source.names)) or len(self.source.spans)) + len(self.unreadable)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return [self._sample(int(index)) for index in indices]

    def _sample(self, index: int) -> Sample | Unreadable:
        start, stop = self.spans[index]
        data = self.source.values[start:stop]
        if not len(data) or np.isnan(data).all():
            return Unreadable(index, self.name(index), "every value is missing")
        time = None if self.source.time is None else self.source.time[start:stop]
        return Sample(data, index, int(self._groups[index]), time)

    def recording_name(self, number: int) -> str:
        """What a person calls a recording."""
        start, stop = self.source.spans[number]
        return self._name_of(number, start, stop, self._pieces[number] > 1)

    def name(self, index: int) -> str:
        number, (start, stop) = int(self.recording[index]), self.spans[index]
        return self._name_of(number, start, stop, self.window > 0 or self._pieces[number] > 1)

    def _name_of(self, number: int, start: int, stop: int, cut: bool) -> str:
        """The file that a recording is of, or its number; and where these steps lie in it, where it is `cut`."""
        name = self.source.names[number] if len(self.source.names) else f"series {number}"
        begin = self._begin[number]
        return f"{name}, steps {start - begin}–{stop - begin - 1}" if cut else name

    def columns(self) -> Sequence[str]:
        """Those of the source, and "recording": the number of the file or recording a window is from, to split by."""
        return [*self.source.rows, *self.source.columns, *(["recording"] if self.window else [])]

    def column(self, name: str) -> np.ndarray:
        if name in self.source.rows:
            values = self.source.rows[name]
            found = [majority(values, start, stop) for start, stop in self.spans]
            return np.array(found, dtype=values.dtype)
        if name in self.source.columns:
            return self.source.columns[name][self.recording]
        if name == "recording" and self.window:
            return self._file[self.recording]
        if name in self.channels:
            raise seen_by_encoder(name, "a channel")
        raise no_column(name, self.columns())

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}-{len(self)}-{'-'.join(self.channels)}"

    def describe(self) -> Description:
        lengths = self.spans[:, 1] - self.spans[:, 0]
        source = self.source
        missing = self._missing()
        facts = dict(source.facts)
        if self.window:
            short = len(source.spans) - len(np.unique(self.recording))
            count = len(source.spans)
            facts["cut"] = f"{count:,} recording{'s' * (count != 1)} into windows of {self.window} steps"
            facts["cut"] += f", {short:,} shorter than half of one left out" if short else ""
        low, high = int(lengths.min()), int(lengths.max())
        facts["length"] = f"{low:,}" if low == high else f"{low:,} … {high:,} (median {int(np.median(lengths)):,})"
        facts["channels"] = f"{len(self.channels)} ({', '.join(self.channels[:12])})"
        if missing:
            facts["missing"] = f"{missing:.1%} of the values"
        if source.group:
            facts["groups"] = f"{len(set(self._groups.tolist())):,} ({source.group})"
        if source.unreadable:
            facts["unreadable"] = f"{len(source.unreadable):,}"
        numbers = {
            "length": float(np.median(lengths)),
            "max_length": float(high),
            "channels": float(len(self.channels)),
            "values": float(lengths.sum() * len(self.channels)),
            "missing": missing,
            "window": float(self.window),
            "recordings": float(len(source.spans)),
        }
        return Description("series", len(self), facts, numbers)

    def _missing(self) -> float:
        """Share of the values inside the series that are missing."""
        spans = self.source.spans
        absent = np.isnan(self.source.values).mean(axis=1)
        inside = np.concatenate([absent[start:stop] for start, stop in spans])
        return float(inside.mean()) if len(inside) else 1.0


def cut_windows(spans: np.ndarray, window: int, stride: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cut recordings into windows.

    What is left at the end of a recording becomes a window of its own, shifted back to full length, if it is at least
    half a window. A recording shorter than a window stays whole, if it is at least half of one.

    Returns:
        (N, 2) int64 first and last row (exclusive) of each window; (N,) the recording it is from.
    """
    if not window:
        return spans, np.arange(len(spans))
    stride = stride or window
    starts: list[int] = []
    owners: list[int] = []
    for owner, (start, stop) in enumerate(spans.tolist()):
        if (stop - start) * 2 < window:
            continue
        own = list(range(start, max(stop - window, start) + 1, stride))
        left = stop - (own[-1] + window)
        if left * 2 >= window:
            own.append(stop - window)
        starts += own
        owners += [owner] * len(own)
    firsts, recording = np.array(starts, dtype=np.int64), np.array(owners, dtype=np.int64)
    return np.stack([firsts, np.minimum(firsts + window, spans[recording, 1])], axis=1), recording


def choose_window(source: Recordings) -> tuple[int, str]:
    """Steps of a window, and the reason."""
    lengths = source.spans[:, 1] - source.spans[:, 0]
    middle = float(np.median(lengths))
    if source.whole:
        return 0, "the source gives whole series"
    if len(lengths) >= 32 and lengths.max() <= 1024 and lengths.max() <= 4 * middle:
        return 0, f"{len(lengths):,} recordings of about {middle:,.0f} steps are samples as they are"
    total = int(lengths.sum())
    window = next((w for w in (256, 128, 64) if total // w >= 512), 32)
    return window, f"cuts {total:,} steps into about {max(total // window, 1):,} windows"


def _files(source: Recordings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,) each: the file that a recording is of, whose pauses may cut it into several, how many it is cut into, and
    the row that it begins with.

    Where there are no files each recording is by itself, and recordings of several groups in one file are of several.
    """
    count = len(source.spans)
    file = np.arange(count)
    if len(source.names):
        group = _group_numbers(source, source.spans, file)
        file = codes(np.array([f"{name} {own}" for name, own in zip(source.names, group, strict=True)], dtype=object))
    first = np.unique(file, return_index=True)[1]
    return file, np.bincount(file, minlength=1)[file], source.spans[first, 0][file]


def _group_numbers(source: Recordings, spans: np.ndarray, recording: np.ndarray) -> np.ndarray:
    """(N,) int64 number of each sample's group, -1 without one."""
    if source.group in source.rows:
        return group_numbers(source.rows[source.group][spans[:, 0].clip(max=len(source.values) - 1)])
    if source.group in source.columns:
        return group_numbers(source.columns[source.group][recording])
    return np.full(len(spans), -1, dtype=np.int64)
