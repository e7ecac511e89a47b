"""Where recordings come from, and the dataset of them in compact form: whole, or cut into windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labelfree.data import sources
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.columns import group_numbers
from labelfree.data.dataset import Dataset, Description
from labelfree.data.encoded import Source, has_feature, turn_of
from labelfree.data.named import recognise_listed, recognise_names
from labelfree.data.once import kept
from labelfree.data.opening import Opener
from labelfree.data.sound import (
    RECORDINGS,
    SUFFIXES,
    Header,
    decode,
    header,
    is_flat,
    is_silent,
    looks_like_recording,
)
from labelfree.data.spread import spaced, spread
from labelfree.errors import LabelfreeError, reason_of
from labelfree.modalities.audio.mel import Mel, log_mels

#: Recordings whose headers are read before training.
LOOK_AT = 1000
#: Samples a second of arrays that do not say, and the most that is kept unless more is asked for.
USUAL_RATE = 16000
#: Names under which an .npz file, or a dictionary of arrays, says its rate.
RATE_NAMES = ("rate", "sampling_rate", "sample_rate", "sr")


@dataclass(frozen=True)
class Form:
    """How recordings are kept: log-mel frames (float16), or the waveform (int16)."""

    input: Literal["mel", "wave"]
    mel: Mel

    @property
    def words(self) -> str:
        if self.input == "wave":
            return f"waveform, {self.mel.rate:,} Hz"
        return f"{self.mel.bands} mel bands every {self.mel.hop_ms:g} ms, from {self.mel.rate:,} Hz"


class Waves(Source):
    """Recordings in memory, or any map-style set of them: arrays, (array, rate, …) tuples, decoded dictionaries."""

    def __init__(self, items: Any, rate: int | None = None, columns: Mapping[str, np.ndarray] | None = None) -> None:
        self._items, self._columns, self._turn = items, dict(columns or {}), turn_of(items)
        self.rate = rate
        self.words = f"{type(items).__name__} of {len(items):,} recordings"

    def __len__(self) -> int:
        return len(self._items)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Any:
        try:
            with self._turn:
                item = self._items[int(index)]
        except Exception as error:  # a user's dataset may raise anything
            return error
        return (item, self.rate) if self.rate is not None and isinstance(item, np.ndarray) else item

    @kept
    def fingerprint(self) -> str:
        some = spaced(len(self), 64).tolist()
        waves = [item[0] if isinstance(item, tuple) else item for item in self.fetch(some)]
        waves = [item["array"] if isinstance(item, dict) and "array" in item else item for item in waves]
        known = (np.asarray(wave) if hasattr(wave, "shape") or isinstance(wave, list) else str(wave) for wave in waves)
        return sources.hash_of(len(self), self.rate, *known)

    def columns(self) -> list[str]:
        return list(self._columns)

    def column(self, name: str) -> np.ndarray:
        return self._columns[name]


def _from_arrays(arrays: Mapping[str, np.ndarray], wanted: str, where: object) -> Waves:
    """The array (N, T) or (N, T, C) among named ones, its rate if one says it, and others of that length as columns."""
    names = [name for name, array in arrays.items() if array.ndim in (2, 3) and array.dtype.kind in "iuf"]
    if wanted != "auto":
        names = [name for name in names if name == wanted]
    if len(names) != 1:
        found = ", ".join(f"{name or 'an array'} {array.shape}" for name, array in arrays.items())
        raise LabelfreeError(
            f"'{where}' should have one array of recordings (N, T) or (N, T, C), but holds {found}.",
            "Name it: column=NAME.",
        )
    waves = arrays[names[0]]
    rate = next((int(arrays[name]) for name in RATE_NAMES if name in arrays and np.ndim(arrays[name]) == 0), None)
    columns = {k: np.asarray(v) for k, v in arrays.items() if v.ndim == 1 and len(v) == len(waves)}
    return Waves(waves, rate, columns)


OPENER = Opener(
    kind=RECORDINGS,
    arrays=_from_arrays,
    items=Waves,
    looks_like=looks_like_recording,
    header=partial(header, rate=USUAL_RATE),
    wanted="a path, an array (N, T[, C]), a list of arrays, a map-style dataset or a Hugging Face dataset",
)


def open_source(source: Any, column: str = "auto") -> Source:
    """The source that `source` is. Raises LabelfreeError where it is missing, empty or of another kind."""
    return OPENER.open(source, column)


class Sounds(Dataset):
    """Recordings in compact form: (R, M) float16 log-mel frames, or (T, 1) int16 waveforms.

    Arguments:
        source: where they are.
        form: how they are kept.
        usual: rate of arrays that do not say theirs.
        group: column that says whose recording it is; else every recording is a group of its own.
        parts: (N, 3) of each sample the recording, where it starts and how long it is, in seconds; None for whole ones.
        by_length: whether samples of about one length ought to share a batch.
    """

    def __init__(
        self,
        source: Source,
        form: Form,
        found: Description,
        usual: int,
        group: str = "",
        parts: np.ndarray | None = None,
        by_length: bool = True,
    ) -> None:
        self._by_length = by_length
        self.source, self.form, self.usual, self.parts = source, form, usual, parts
        self._found, self._group = found, group
        self._groups = _numbers(source, group)
        self._silent: dict[int, bool] = {}
        self.unreadable = source.closed
        self.shards = source.shards if parts is None else np.searchsorted(parts[:, 0], source.shards).tolist()
        self.reach = source.reach * len(self) // max(1, len(source))  # windows, where recordings are cut

    def __len__(self) -> int:
        return len(self.source) if self.parts is None else len(self.parts)

    def source_count(self) -> int:
        return len(self.source) + len(self.unreadable)

    def _owner(self, index: int) -> int:
        return index if self.parts is None else int(self.parts[index, 0])

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        found = self._waves(indices)
        good = [wave for wave in found if not isinstance(wave, Unreadable)]
        if self.form.input == "wave":
            data = [np.round(wave * 32767).astype(np.int16)[:, None] for wave in good]
        else:
            data = log_mels(good, self.form.mel) if good else []
        rest = iter(data)
        return [
            wave if isinstance(wave, Unreadable) else Sample(next(rest), int(i), self._group_of(int(i)))
            for i, wave in zip(indices, found, strict=True)
        ]

    def shown(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        """Samples with their waveforms, which a person can listen to."""
        found = self._waves(indices)
        rounded = (w if isinstance(w, Unreadable) else np.round(w * 32767).astype(np.int16)[:, None] for w in found)
        return [w if isinstance(w, Unreadable) else Sample(w, int(i)) for i, w in zip(indices, rounded, strict=True)]

    def _waves(self, indices: Sequence[int]) -> list[np.ndarray | Unreadable]:
        items = self.source.fetch([self._owner(int(index)) for index in indices])
        return [self._wave(int(index), item) for index, item in zip(indices, items, strict=True)]

    def _wave(self, index: int, item: Any) -> np.ndarray | Unreadable:
        start, seconds = (0.0, None) if self.parts is None else self.parts[index, 1:].tolist()
        try:
            wave = decode(item, self.form.mel.rate, self.usual, start, seconds)
            if seconds is not None and is_flat(wave) and self._is_silent(self._owner(index), item):
                raise ValueError("is silent")
            return wave
        except LabelfreeError:  # a package is missing
            raise
        except Exception as error:  # damaged files make decoders raise nearly anything
            return Unreadable(index, self.name(index), reason_of(error))

    def _is_silent(self, owner: int, item: Any) -> bool:
        """Whether a recording is as a whole, looked at once for all its windows: a pause of another is a sample."""
        if owner not in self._silent:
            self._silent[owner] = is_silent(item, self.usual)
        return self._silent[owner]

    def _group_of(self, index: int) -> int:
        owner = self._owner(index)
        return owner if self._groups is None else int(self._groups[owner])

    def windows(self, seconds: float, by_length: bool) -> Sounds:
        """The same recordings, those longer than `seconds` as windows of this length that cover them evenly.

        Args:
            by_length: whether samples of about one length ought to share a batch.
        """
        parts = cut(self._seconds, seconds) if self._seconds.max() > seconds else None
        return Sounds(self.source, self.form, self._found, self.usual, self._group, parts, by_length)

    def sizes(self) -> np.ndarray | None:
        if not self._by_length:
            return None
        if self.parts is None:
            return self._seconds
        owner, _, seconds = self.parts.T
        return np.minimum(self._seconds[owner.astype(int)], seconds)

    @cached_property
    def _seconds(self) -> np.ndarray:
        """(N,) length of each recording of the source; 0 where it cannot be read."""
        found = np.zeros(len(self.source))
        for start in range(0, len(found), 256):
            for index, item in enumerate(self.source.fetch(range(start, min(start + 256, len(found)))), start):
                known = _header(item, self.usual)
                found[index] = known.seconds if isinstance(known, Header) else 0.0
        return found

    def describe(self) -> Description:
        return self._found

    def fingerprint(self) -> str:
        return sources.hash_of(self.source.fingerprint(), self.form, len(self))

    def name(self, index: int) -> str:
        name = self.source.name(self._owner(index))
        if self.parts is None or self._part_counts[self._owner(index)] == 1:
            return name
        _, start, seconds = self.parts[index]
        return f"{name}, {start:.1f}–{start + seconds:.1f} s"

    @cached_property
    def _part_counts(self) -> np.ndarray:
        """(N,) how many samples each recording is cut into: one is the whole of a short or a broken one."""
        assert self.parts is not None
        return np.bincount(self.parts[:, 0].astype(int), minlength=len(self.source))

    def columns(self) -> Sequence[str]:
        return self.source.columns()

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns():
            raise self.source.no_column(name)
        values = self.source.column(name)
        return values if self.parts is None else values[self.parts[:, 0].astype(int)]


def cut(lengths: np.ndarray, window: float) -> np.ndarray:
    """(N,) seconds of recordings → (W, 3): recording, start and length of windows that cover each evenly."""
    counts = np.maximum(np.ceil(lengths / window - 1e-9), 1).astype(int)
    owner = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = place * (np.maximum(lengths - window, 0) / np.maximum(counts - 1, 1))[owner]
    return np.stack([owner, start, np.full(len(owner), window)], axis=1)


def _numbers(source: Source, group: str) -> np.ndarray | None:
    """(N,) int64 number of each recording's group; None where there are no groups."""
    if not group:
        return None
    if group not in source.columns():
        known = ", ".join(source.columns()) or "no columns"
        raise LabelfreeError(f"group names '{group}', but the source has {known}.")
    return group_numbers(np.asarray(source.column(group)))


def _header(item: Any, usual: int) -> Header | str:
    try:
        found = header(item, usual)
    except LabelfreeError:
        raise
    except Exception as error:  # damaged files make decoders raise nearly anything
        return reason_of(error)
    return found if found.frames else "holds no sound"


def look_through(source: Source, usual: int) -> tuple[list[Header], list[Unreadable]]:
    """Headers of up to `LOOK_AT` recordings spread over the source, and those that have none."""
    where = spread(len(source), source.shards, LOOK_AT)
    headers: list[Header] = []
    unreadable: list[Unreadable] = []
    for index, item in zip(where, source.fetch(where), strict=True):
        found = _header(item, usual)
        if isinstance(found, Header):
            headers.append(found)
        else:
            unreadable.append(Unreadable(index, source.name(index), found))
    if not headers:
        example = unreadable[0]
        raise LabelfreeError(
            f"None of the {len(unreadable)} recordings looked at can be read; '{example.name}': {example.reason}.",
            "Check the source, or name another modality.",
        )
    return headers, unreadable


def usual_rate(headers: Sequence[Header]) -> int:
    """The rate that most recordings have, but no more than `USUAL_RATE`."""
    return min(Counter(found.rate for found in headers).most_common(1)[0][0], USUAL_RATE)


def description(source: Source, form: Form, headers: Sequence[Header], unreadable: list[Unreadable]) -> Description:
    """What was found, in words and numbers."""
    seconds = np.array([found.seconds for found in headers])
    rates = Counter(found.rate for found in headers)
    channels = Counter(found.channels for found in headers)
    facts = {
        "source": source.words,
        "length": f"{seconds.min():.1f} … {seconds.max():.1f} s (median {np.median(seconds):.1f}), "
        f"{seconds.mean() * len(source) / 3600:.2f} hours in all",
        "rate": " and ".join(f"{rate:,} Hz" for rate, _ in rates.most_common(3)),
        "channels": " and ".join(str(count) for count, _ in channels.most_common(3)),
        "kept as": form.words,
    }
    if set(channels) != {1}:
        facts["channels"] += ", averaged"
    if unreadable:
        facts["unreadable"] = f"{len(unreadable)} of {len(headers) + len(unreadable):,} looked at"
    numbers = {
        "seconds": float(np.median(seconds)),
        "max_seconds": float(seconds.max()),
        "hours": float(seconds.mean() * len(source) / 3600),
        "rate": float(usual_rate(headers)),
    }
    return Description("audio", len(source), facts, numbers)


# ---- guessing the kind of data


def recognise(source: Any) -> tuple[float, str]:
    """How sure that `source` holds recordings, and the words for it."""
    if isinstance(source, str | Path):
        return _recognise_path(Path(source).expanduser())
    if sources.is_hugging_face(source):
        return (0.95, "a Hugging Face dataset with an audio column") if has_feature(source, RECORDINGS) else (0.0, "")
    if isinstance(source, Mapping):
        return _guarded(lambda: _recognise_arrays({key: np.asarray(value) for key, value in source.items()}))
    if isinstance(source, np.ndarray) or type(source).__module__ == "torch":
        return _recognise_arrays({"": source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()})
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and len(source):
        return max(recognise_names(source, RECORDINGS), _guarded(lambda: _recognise_item(source)))
    return 0.0, ""


def _guarded(guess: Callable[[], tuple[float, str]]) -> tuple[float, str]:
    try:
        return guess()
    except Exception:  # whatever it is, it cannot be looked into
        return 0.0, ""


def _recognise_item(source: Any) -> tuple[float, str]:
    item = source[0]
    says_rate = (isinstance(item, dict) and {"array", "sampling_rate"} <= set(item)) or (
        isinstance(item, tuple) and len(item) > 1 and isinstance(item[1], int) and item[1] >= 1000 and np.ndim(item[0])
    )
    return (0.95, f"{len(source):,} recordings at {header(item, 1).rate:,} Hz") if says_rate else (0.0, "")


def _recognise_path(path: Path) -> tuple[float, str]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return sources.recognise_folder(path, SUFFIXES, "sound", _recognise_path)
    if suffix in SUFFIXES:
        return 0.95, "a sound file"
    if suffix == ".npz":
        return _guarded(lambda: _recognise_arrays(sources.load_arrays(path)))
    if suffix in sources.BINARY:
        return max(_guarded(lambda: _recognise_table(path)), _guarded(lambda: recognise_listed(path, RECORDINGS)))
    return _guarded(lambda: recognise_listed(path, RECORDINGS))


def _recognise_table(path: Path) -> tuple[float, str]:
    source = open_source(path)
    item = source.fetch([0])[0]
    start = item.open("rb").read(12) if isinstance(item, Path) else bytes(item[:12])
    return (0.95, f"recordings in {source.words}") if looks_like_recording(start) else (0.0, "")


def _recognise_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[float, str]:
    said = [name for name in RATE_NAMES if name in arrays and arrays[name].ndim == 0]
    waves = [array for array in arrays.values() if array.ndim in (2, 3) and array.dtype.kind in "iuf"]
    if said and waves:
        return 0.95, f"numbers {waves[0].shape} and their '{said[0]}'"
    fits = [w for w in waves if w.dtype == np.int16 and w.shape[1] >= 4000 and (w.ndim == 2 or w.shape[2] <= 2)]
    return (0.6, f"16-bit numbers {fits[0].shape}") if fits else (0.0, "")
