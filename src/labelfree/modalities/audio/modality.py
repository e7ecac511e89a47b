"""Audio: speech, music, machines, animals; files and arrays of any rate, any number of channels, any length."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from labelfree.data import sound
from labelfree.data.batch import Batch, Sample
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.on_device import on_device
from labelfree.data.spread import spread
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import TargetError, value_error
from labelfree.modalities.audio import sources as reading
from labelfree.modalities.audio import views as augment
from labelfree.modalities.audio.mel import Mel, log_mel, log_mels, mfcc_statistics, sketch
from labelfree.modalities.audio.sources import Form, Sounds
from labelfree.modalities.audio.tokens import WaveStem, reach, stride, token_counts, valid_tokens
from labelfree.modalities.base import Budget, Choice, Modality, PictureForm, Shared, Transformation, span_mask
from labelfree.modalities.capacity import transformer_for
from labelfree.modalities.series import tokens as steps
from labelfree.modalities.series import views as timing
from labelfree.needs import Need
from labelfree.settings import Settings, Share

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Seconds of the windows that longer recordings are cut into, unless it is said.
WINDOW = 10.0
#: Samples that are looked at for statistics, and those that views mix others with (BYOL-A remembers 2048).
MEASURE, MEMORY = 512, 512
#: Frames of a picture come in multiples of this, so that networks can halve them.
SIDE = 16
#: Numbers of a full 16-bit waveform.
TOP = 32768.0


class AudioSettings(Settings):
    """How recordings are read, cut and augmented."""

    input: Literal["mel", "wave"] = "mel"
    """what encoders are given: log-mel frames, or the waveform itself (as wav2vec 2.0)"""
    rate: PositiveInt | Literal["auto"] = "auto"
    """samples a second that recordings are brought to; auto: what most have, at most 16,000"""
    column: str = "auto"
    """the column, or array, of a table that holds the recordings"""
    group: str = ""
    """column that says whose recording it is (speaker, device); empty: each file is a group of its own"""
    mels: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """bands of a spectrogram"""
    frame: PositiveFloat = 25.0
    """milliseconds that a frame of a spectrogram looks at"""
    hop: PositiveFloat = 10.0
    """milliseconds from one frame to the next"""
    patch: PositiveInt = 4
    """frames of a token (waveforms have a token every 20 ms)"""
    window: PositiveFloat | Literal["auto"] = "auto"
    """seconds of the windows that longer recordings are cut into for pretraining"""
    crop: PositiveFloat = 0.95
    """views: seconds that are seen, from anywhere in the window"""
    speed: Annotated[float, Field(ge=1)] = 1.5
    """views: largest factor by which one is faster or slower; 1 for no change"""
    bands: Annotated[float, Field(gt=0, le=1)] = 0.6
    """views: smallest share of the bands that is stretched over all of them (log-mel frames); 1 for no stretching"""
    mixup: Share = 0.4
    """views: largest share of the power that comes from another recording mixed in; 0 for none"""
    noise: Share = 0.0
    """views: largest power of white noise that is added, as a share of the recording's"""
    gain: NonNegativeFloat = 6.0
    """views: largest change of loudness, in decibels"""
    time_mask: Share = 0.0
    """views: longest stretch of time that is silenced, as a share"""
    band_mask: Share = 0.0
    """views: largest group of neighbouring bands that is silenced, as a share (log-mel frames)"""
    span: PositiveFloat = 200.0
    """masks: milliseconds that are hidden together"""
    target_error: TargetError = "squared"
    """how predicted frames are compared: squared or absolute differences"""


class Audio(Modality):
    """Recordings. A raw batch and a view are (B, T, C): log-mel frames of C bands, or waveforms (C = 1).

    A token is `patch` frames, or 20 ms of a waveform; views are normalised, and 0 beyond the end.
    """

    name = "audio"
    settings_class = AudioSettings
    suffixes = sound.SUFFIXES
    signal = True
    offers: ClassVar[frozenset[Need]] = frozenset(
        {
            Need.VIEWS,
            Need.ALIGNED_VIEWS,
            Need.TARGETS,
            Need.MASK,
            Need.ORDER,
            Need.TRANSFORMATIONS,
            Need.PICTURES,
        }
    )

    def __init__(self, settings: AudioSettings | None = None) -> None:
        super().__init__(settings)
        self._rate = 0
        self._level = 0.1
        self._mean = torch.full((self.settings.mels,), -10.0)
        self._std = torch.full((self.settings.mels,), 4.0)
        self._length = 0
        self._memory: Tensor | None = None

    # ---- sizes

    @property
    def rate(self) -> int:
        """Samples a second: as set, as fitted, or as the source that was opened has."""
        return self.settings.rate if self.settings.rate != "auto" else self._rate or reading.USUAL_RATE

    @property
    def mel(self) -> Mel:
        return Mel(self.settings.mels, self.rate, self.settings.frame, self.settings.hop)

    @property
    def channels(self) -> int:
        """Numbers of a step."""
        return 1 if self._waves else self.settings.mels

    @property
    def _waves(self) -> bool:
        return self.settings.input == "wave"

    @property
    def training_size(self) -> float:
        return WINDOW if self.settings.window == "auto" else self.settings.window

    @property
    def _crop_frames(self) -> int:
        return max(1, -(-round(self.settings.crop * 1000 / self.settings.hop) // SIDE)) * SIDE

    @property
    def _crop_steps(self) -> int:
        return self._crop_frames * (self.mel.hop if self._waves else 1)

    def _tokens_in(self, length: Any) -> Any:
        """Tokens of so many steps (a number, or (B,) of them)."""
        return token_counts(length, self.rate) if self._waves else -(-length // self.settings.patch)

    def _steps_of(self, tokens: int) -> int:
        """Steps that so many tokens see."""
        return (tokens - 1) * self._token_step + (reach(self.rate) if self._waves else self._token_step)

    @property
    def _token_step(self) -> int:
        return stride(self.rate) if self._waves else self.settings.patch

    @property
    def _token_ms(self) -> float:
        return 1000 * self._token_step / self.rate if self._waves else self.settings.patch * self.settings.hop

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        return reading.recognise(source)

    def open(self, source: Any) -> Sounds:
        opened = reading.open_source(source, self.settings.column)
        if len(opened) == 0:
            raise LabelfreeError(f"The source is empty: {opened.words}.", "Give one with recordings in it.")
        usual = self.rate
        headers, unreadable = reading.look_through(opened, usual)
        if not self._rate:
            self._rate = self.settings.rate if self.settings.rate != "auto" else reading.usual_rate(headers)
        form = Form(self.settings.input, self.mel)
        found = reading.description(opened, form, headers, unreadable)
        return Sounds(opened, form, found, usual, self.settings.group)

    def training_set(self, dataset: Dataset, needs: frozenset[Need] = frozenset()) -> Dataset:
        """Windows of long recordings, of which views remember some to mix with; by length where they are not cropped.

        The memory is part of the training alone: it is chosen anew, the same, from the same source.
        """
        if isinstance(dataset, Sounds):
            dataset = dataset.windows(self.training_size, by_length=Need.VIEWS not in needs)
        if self.settings.mixup and Need.VIEWS in needs:
            self._memory = self._remembered(dataset)
        return dataset

    def _remembered(self, dataset: Dataset) -> Tensor:
        """(K, crop, C) from the middle of samples all over the source, repeated where they are shorter."""
        size = self._crop_steps
        kept = []
        for sample in _some(dataset, MEMORY):
            first = max(0, (len(sample.data) - size) // 2)
            kept.append(np.resize(sample.data[first : first + size], (size, self.channels)))
        return torch.from_numpy(np.stack(kept))

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        longest, window = found.numbers["max_seconds"], self.training_size
        reason = "cuts longer recordings" if longest > window else f"no recording is longer than {longest:.1f} s"
        most = 256 if budget.accelerator else 64
        return [
            Choice("method", "cola", "two stretches of a recording find each other among others"),
            transformer_for(1000 * 3600 * found.numbers["hours"] / self._token_ms, budget),
            Choice("batch_size", max(2, min(most, found.count // 4)), f"a quarter of the recordings, at most {most}"),
            Choice("rate", int(found.numbers["rate"]), "what most recordings have, at most 16,000"),
            Choice("window", window, reason),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        samples = _some(dataset, MEASURE)
        if len(dataset) < 1 or not samples:
            raise LabelfreeError("No recording can be read.", "Check the source.")
        if len(samples) > 1 and all(np.array_equal(samples[0].data, sample.data) for sample in samples[1:]):
            raise LabelfreeError("All recordings are the same: there is nothing to learn.", "Give different ones.")
        longest = round(self.training_size * (self.rate if self._waves else 1000 / self.settings.hop))
        self._length = int(np.median([min(len(sample.data), longest) for sample in samples]))
        frames = torch.from_numpy(np.concatenate(self._frames_of(samples))).float()
        self._std, self._mean = torch.std_mean(frames, dim=0, correction=0)
        self._std.clamp_min_(0.1)
        if self._waves:
            self._level = float(np.sqrt(np.mean([np.square(s.data / TOP).mean() for s in samples])))

    def _frames_of(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """(R, M) log-mel frames of each sample, however it is kept."""
        if not self._waves:
            return [sample.data for sample in samples]
        return log_mels([sample.data[:, 0] / np.float32(TOP) for sample in samples], self.mel)

    def state(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
            "level": self._level,
            "length": self._length,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._rate, self._level, self._length = int(state["rate"]), float(state["level"]), int(state["length"])
        self._mean, self._std = torch.tensor(state["mean"]), torch.tensor(state["std"])

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        lengths = [len(sample.data) for sample in samples]
        data = np.zeros((len(samples), max(lengths), self.channels), dtype=samples[0].data.dtype)
        for row, sample in zip(data, samples, strict=True):
            row[: len(sample.data)] = sample.data
        return Batch(
            data=torch.from_numpy(data),
            index=torch.tensor([sample.index for sample in samples]),
            lengths=None if min(lengths) == max(lengths) else torch.tensor(lengths),
            group=torch.tensor([sample.group for sample in samples]),
        )

    def _loaded(self, x: Tensor) -> Tensor:
        """Compact values as float32: log powers, or ±1."""
        return x.float().div_(TOP) if self._waves else x.float()

    def _scaled(self, frames: Tensor) -> Tensor:
        return (frames - on_device(self._mean, frames.device)) / on_device(self._std, frames.device)

    def _normalised(self, x: Tensor) -> Tensor:
        if self._waves:
            return x / self._level
        return self._scaled(x)

    def _view(self, batch: Batch, x: Tensor, lengths: Tensor | None, draw: Draw | None) -> Batch:
        """A view of normalised values: 0 where there is no sound."""
        if lengths is not None:
            x = x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        return batch.with_(data=x.nan_to_num_(0.0), lengths=lengths, draw=draw)

    def prepare(self, batch: Batch) -> Batch:
        return self._view(batch, self._normalised(self._loaded(batch.data)), batch.lengths, batch.draw)

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        own = self.settings
        if policy == "none":
            return self.prepare(batch).with_(draw=draw)
        gain = augment.gain_wave if self._waves else augment.gain_mel
        if policy == "light":
            x = self._loaded(batch.data)
            x = gain(x, draw, own.gain / 2) if own.gain else x
            return self._view(batch, self._normalised(x), batch.lengths, draw)
        x, lengths = self._cropped(
            batch, draw, max(1, self._crop_steps // 2) if policy == "local" else self._crop_steps
        )
        x = augment.shift_bands(x, draw, own.bands) if own.bands < 1 and not self._waves else x
        if self._memory is not None:
            mix = augment.mix_wave if self._waves else augment.mix_mel
            memory = on_device(self._memory, x.device)
            chosen = draw.integers("mixed with", len(memory))
            x = mix(x, self._loaded(memory[chosen, : x.shape[1]]), draw, own.mixup)
        if own.noise:
            x = (augment.noise_wave if self._waves else augment.noise_mel)(x, draw, own.noise)
        x = self._normalised(gain(x, draw, own.gain) if own.gain else x)
        x = augment.blank(x, draw, own.time_mask, 1) if own.time_mask else x
        x = augment.blank(x, draw, own.band_mask, 2) if own.band_mask and not self._waves else x
        return self._view(batch, x, lengths, draw)

    def _cropped(self, batch: Batch, draw: Draw, count: int) -> tuple[Tensor, Tensor | None]:
        """A stretch of `count` steps of each, faster or slower; lengths where some may be too short for it."""
        fastest = self.settings.speed
        known = batch.steps()
        # Frames are taken as they are kept, and only what is taken becomes float32.
        x = self._loaded(batch.data) if self._waves else batch.data
        x, inside = augment.stretch(x, known, draw, count, 1 / fastest, fastest)
        enough = batch.lengths is None and (count - 1) / fastest <= batch.data.shape[1] - 1
        return x, None if enough else inside

    def overlapping_views(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch, Shared]:
        """Random crops that overlap in whole tokens (see `series.views.overlap`)."""
        usual = max(2, self._tokens_in(self._length or batch.data.shape[1]))
        lengths = batch.steps()
        found = timing.overlap(draw, self._tokens_in(lengths), usual)
        x = self._normalised(self._loaded(batch.data))

        def cut(number: int, first: Tensor, count: int) -> Batch:
            size, begin = self._steps_of(count), first * self._token_step
            taken = timing.take_steps(x, begin[:, None] + torch.arange(size, device=x.device))
            whole = batch.lengths is None and self._steps_of(usual) <= x.shape[1]
            left = None if whole else (lengths - begin).clamp(1, size)
            return self._view(batch, taken, left, draw.view(number))

        first, second = found.crops
        return cut(0, *first), cut(1, *second), found.shared

    def transformations(self) -> Mapping[str, Transformation]:
        orders = torch.tensor(list(itertools.permutations(range(3))))

        def order(batch: Batch, which: Tensor, draw: Draw) -> Batch:
            view = self.view(batch, draw, "light")
            x = timing.segments(view.data, view.steps(), on_device(orders, which.device)[which])
            return view.with_(data=x)

        def reversal(batch: Batch, which: Tensor, draw: Draw) -> Batch:
            view = self.view(batch, draw, "light")
            return view.with_(data=timing.reverse(view.data, view.steps(), which))

        return {"reversal": Transformation(2, reversal), "order": Transformation(len(orders), order, ordered=True)}

    # ---- tokens

    def token_count(self, batch: Batch) -> int:
        return self._tokens_in(batch.data.shape[1])

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.encoders.trunk import Trunk

        shape = SIZES[size]
        longest = round(self.training_size * (self.rate if self._waves else 1000 / self.settings.hop))
        stem: torch.nn.Module = (
            WaveStem(self.rate, min(512, shape.dim), shape.dim)
            if self._waves
            else steps.SeriesStem(self.channels, self.settings.patch, shape.dim)
        )
        window = self._tokens_in(longest) + 1
        return Trunk(stem, shape.dim, shape.depth, shape.heads, causal=causal, dropout=0.1, window=window)

    def _valid(self, batch: Batch) -> Tensor | None:
        if self._waves:
            return valid_tokens(batch, self.rate, self.token_count(batch))
        return steps.valid_tokens(batch, self.settings.patch)

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Spans of tokens, padding never."""
        span = max(1, round(self.settings.span / self._token_ms))
        return span_mask(draw, self.token_count(batch), span, ratio, self._valid(batch))

    def _spectrum(self, view: Batch, mel: Mel) -> Tensor:
        """(B, R, M) normalised log-mel frames of a view of waveforms."""
        frames = log_mel(view.data[..., 0] * self._level, mel)
        return self._scaled(frames)

    def targets(self, batch: Batch) -> Tensor:
        """(B, N, patch·M) the token's log-mel frames; of a waveform's token (B, N, M) the one around it."""
        if not self._waves:
            return steps.patches(batch.data, self.settings.patch, batch.lengths)
        count, step = self.token_count(batch), self._token_step
        mel = Mel(
            self.settings.mels, self.rate, max(self.settings.frame, 1000 * step / self.rate), 1000 * step / self.rate
        )
        frames = self._spectrum(batch, mel)[:, :count]
        return F.pad(frames, (0, 0, 0, count - frames.shape[1]))

    @property
    def target_dim(self) -> int:
        return self.settings.mels * (1 if self._waves else self.settings.patch)

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return value_error(prediction, target, self.settings.target_error)

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        """Log-mel frames; what is not known is silent."""
        if self._waves:
            return super().rebuild(view, prediction, mask)
        x, patch = view.data.float(), self.settings.patch
        if prediction is not None:
            found = prediction if mask is None else torch.where(mask[..., None], prediction, steps.patches(x, patch))
            x = found.unflatten(2, (patch, -1)).flatten(1, 2)[:, : x.shape[1]]
        frames = (
            (x * on_device(self._std, x.device) + on_device(self._mean, x.device)).nan_to_num(nan=-1e4).cpu().numpy()
        )
        lengths = [x.shape[1]] * len(x) if view.lengths is None else view.lengths.tolist()
        return [Sample(row[:n], i) for row, n, i in zip(frames, lengths, view.index.tolist(), strict=True)]

    # ---- pictures

    def picture_form(self) -> PictureForm:
        width, height = self._crop_frames, self.settings.mels
        patch = next(p for p in (16, 8) if width % p == 0 and height % p == 0)
        longest = round(self.training_size * 1000 / self.settings.hop)
        return PictureForm(1, height, width, patch, count=-(-longest // width))

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Spectrograms of the length of a crop, as many as the sample is long; low bands are at the top."""
        x, hop = (self._spectrum(batch, self.mel), self.mel.hop) if self._waves else (batch.data, 1)
        width = self._crop_frames
        count = -(-x.shape[1] // width)
        frames = -(-batch.steps() // hop)
        if self._waves:
            x = x.masked_fill((torch.arange(x.shape[1], device=x.device) >= frames[:, None])[..., None], 0.0)
        x = F.pad(x, (0, 0, 0, count * width - x.shape[1]))
        pictures = x.unflatten(1, (count, width)).transpose(2, 3).unsqueeze(2)
        if batch.lengths is None and count == 1:
            return pictures, None
        left = frames[:, None] - width * torch.arange(count, device=x.device)
        return pictures, left.clamp(0, width) / width

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        """A player over the spectrogram where the sample has its waveform, else the spectrogram."""
        waves = sample.data.dtype == np.int16
        wave = sample.data[:, 0] / np.float32(TOP) if waves else None
        frames = sample.data if wave is None else log_mels([wave], self.mel)[0]
        name = html.escape(f"recording {sample.index}")
        shown = f'<img src="data:image/png;base64,{_spectrogram(frames)}" alt="{name}" width="160" height="64">'
        if wave is None:
            return shown
        content = base64.b64encode(sound.player(wave, self.rate)).decode()
        return f'{shown}<audio controls preload="none" src="data:audio/mpeg;base64,{content}"></audio>'

    def length_words(self, length: float) -> str:
        return f"{length / (self.rate if self._waves else 1000 / self.settings.hop):,.1f} s"

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Statistics of mel-frequency cepstral coefficients of each recording."""
        return [self._described(dataset, mfcc_statistics) for dataset in (train, *others)]

    def copy_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Coarse spectrograms, which a gain or faint noise leaves as they are."""
        return [self._described(dataset, sketch) for dataset in (train, *others)]

    def _described(self, dataset: Dataset, describe: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(N, F) what `describe` makes of the (R, M) frames of each recording; zeros where it cannot be read."""
        rows: list[np.ndarray] = []
        for start in range(0, len(dataset), 256):
            items = dataset.read(range(start, min(start + 256, len(dataset))))
            good = [item for item in items if isinstance(item, Sample)]
            found = iter(self._frames_of(good) if good else [])
            blank = np.full((1, self.settings.mels), np.nan)
            rows += [describe(next(found) if isinstance(item, Sample) else blank) for item in items]
        return np.nan_to_num(np.stack(rows))


def _some(dataset: Dataset, count: int) -> list[Sample]:
    """Up to `count` readable samples all over the dataset, read a few at a time."""
    where = spread(len(dataset), dataset.shards, count)
    parts = (dataset.read(where[start : start + 64]) for start in range(0, len(where), 64))
    return [item for items in parts for item in items if isinstance(item, Sample)]


def _spectrogram(frames: np.ndarray) -> str:
    """(R, M) log-mel frames as a PNG, low bands at the bottom, 60 dB from black to white; base64."""
    from PIL import Image

    x = frames.astype(np.float32).T[::-1]
    grey = ((x - x.max()) / (60 * augment.DECIBEL) + 1).clip(0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).resize((320, 64), Image.Resampling.BOX).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
