"""Video: films of any length and rate, as files, folders of frames or arrays; learnt from as short clips."""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from labelfree.data import films, pictures, sources
from labelfree.data.batch import Batch, Sample
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.encoded import encoded_columns, has_feature
from labelfree.data.named import recognise_listed, recognise_names
from labelfree.data.on_device import constant
from labelfree.data.pictures import Form
from labelfree.data.spread import spread
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget, Choice, Modality, PictureForm, Transformation, token_mask
from labelfree.modalities.image.features import standardised
from labelfree.modalities.image.tokens import moments
from labelfree.modalities.image.views import (
    AUGMENT,
    LOCAL_CROP,
    Policy,
    central_boxes,
    crop,
    patch_side,
    random_boxes,
    recolour,
)
from labelfree.modalities.video.sources import (
    FILMS,
    Clips,
    Cut,
    choose_cut,
    find_form,
    frame_folders,
    look_through,
    open_source,
)
from labelfree.modalities.video.tokens import VideoStem, frames_at, joined, tubes
from labelfree.needs import Need
from labelfree.settings import Settings

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Clips whose values are looked at for statistics.
MEASURE = 128
#: Segments that are shuffled in the order task.
SEGMENTS = 3


class VideoSettings(Settings):
    """How films are read, cut into clips and augmented."""

    size: PositiveInt = 32
    """height and width of the views, in pixels"""
    frames: PositiveInt = 8
    """frames of a view"""
    fps: PositiveFloat = 8.0
    """frames kept per second; folders of frames, arrays and slower films keep all"""
    span: PositiveInt | Literal["auto"] = "auto"
    """frames kept of a clip, from which views take some in a row; auto: twice those of a view"""
    stride: NonNegativeInt = 0
    """frames kept from the start of a clip to that of the next; 0: a whole clip, or less where clips would be few"""
    patch: PositiveInt | Literal["auto"] = "auto"
    """side of a token's square for transformers, in pixels; auto: 8 or more tokens across"""
    tube: PositiveInt = 2
    """frames of a token"""
    target: Literal["normalised", "pixels", "motion"] = "normalised"
    """what is predicted of tokens: pixels, normalised within each or not, or what changed since the frame before"""
    channels: PositiveInt | Literal["auto"] = "auto"
    """channels that frames are brought to; auto: the source's"""
    column: str = "auto"
    """the column, or array, of a table that holds the films"""
    store: PositiveInt | Literal["auto"] = "auto"
    """side at which larger frames are kept in memory; auto: half as much again as the views'"""
    augment: Literal["A", "S", "W", "V", "none"] = "A"
    """random views, one for all frames of a clip: A (usual), S (strong), W (weaker colours), V (large crops)"""
    crop_min: float | None = Field(None, gt=0, le=1)
    """smallest share of a frame's area that a view shows"""
    light_crop_min: float = Field(0.5, gt=0, le=1)
    """the same for masked and pretext objectives, whose views are crops alone"""
    flip: float | None = Field(None, ge=0, le=1)
    """probability of a left-right flip"""

    def policy(self) -> Policy:
        """The augmentation of a contrast view, with what was set by hand; blur is left out."""
        base = replace(AUGMENT[self.augment], blur=0.0)
        flip = base.flip if self.flip is None else self.flip
        return replace(base, crop=(self.crop_min or base.crop[0], 1.0), flip=flip)


class Video(Modality):
    """Clips of films. A raw sample is (L, C, H, W); a view is (B, T, C, size, size), normalised: T frames in a row.

    Crop and colours are the same for all frames of a view. Tokens are tubes, moment by moment, in each row by row.
    """

    name = "video"
    settings_class = VideoSettings
    suffixes = films.SUFFIXES
    signal = True
    offers: ClassVar[frozenset[Need]] = frozenset(
        {Need.VIEWS, Need.TARGETS, Need.MASK, Need.ORDER, Need.TRANSFORMATIONS, Need.PICTURES}
    )

    def __init__(self, settings: VideoSettings | None = None) -> None:
        super().__init__(settings)
        if self.frames % self.settings.tube:
            raise LabelfreeError(
                f"tube={self.settings.tube} does not divide frames={self.frames}.", "Choose a divisor, or tube=1."
            )
        self._form: Form | None = None
        self._cut: Cut | None = None
        self._mean: list[float] = []
        self._std: list[float] = []
        self._motion = 1.0
        self._opened_channels: int | None = None

    # ---- sizes that encoders ask for

    @property
    def size(self) -> int:
        return self.settings.size

    @property
    def frames(self) -> int:
        """Frames T of a view."""
        return self.settings.frames

    @property
    def channels(self) -> int:
        """Channels of a view: as set, as fitted, or as the source that was opened has."""
        if self.settings.channels != "auto":
            return self.settings.channels
        return self._form.channels if self._form is not None else self._opened_channels or 3

    @property
    def patch(self) -> int:
        """Side of a token's square in pixels. Raises LabelfreeError where it does not divide the size."""
        return patch_side(self.size, self.settings.patch)

    @property
    def moment(self) -> int:
        return (self.size // self.patch) ** 2

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if isinstance(source, str | Path):
            return _recognise_path(Path(source).expanduser())
        if sources.is_hugging_face(source):
            return (0.95, "a Hugging Face dataset with a video column") if has_feature(source, FILMS) else (0.0, "")
        if isinstance(source, Mapping):
            return max((cls.recognise(array) for array in source.values()), default=(0.0, ""))
        if (found := recognise_names(source, FILMS))[0]:
            return found
        if isinstance(source, list | tuple) and len(source) and hasattr(source[0], "shape"):
            return _recognise_shape((len(source), *source[0].shape), "a list of films")
        if hasattr(source, "shape"):
            return _recognise_shape(tuple(source.shape), f"an array of {'×'.join(map(str, source.shape))}")
        return 0.0, ""

    def open(self, source: Any) -> Clips:
        own = self.settings
        opened = open_source(source, own.column)
        if len(opened) == 0:
            raise LabelfreeError(f"The source is empty: {opened.words}.", "Give one with films in it.")
        headers, unreadable = look_through(opened)
        if not headers:
            example = unreadable[0]
            raise LabelfreeError(
                f"None of the {len(unreadable)} films can be read; '{example.name}': {example.reason}.",
                "Check the source, or name another modality.",
            )
        form, cut = self._form, self._cut
        if form is None or cut is None:
            store = self.size + self.size // 2 if own.store == "auto" else own.store
            form = find_form(opened, headers, None if own.channels == "auto" else own.channels, store)
            span = None if own.span == "auto" else own.span
            cut = choose_cut(headers, own.fps, self.frames, span, own.stride or None)
            self._opened_channels = form.channels
        clips = Clips(opened, headers, form, cut, unreadable)
        if not len(clips):
            longest = max(cut.kept(found) for found in headers.values())
            raise LabelfreeError(
                f"No film is long enough for half a clip of {cut.span} frames: the longest has {longest}.",
                "Set a smaller span, or a higher fps.",
            )
        return clips

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        side, length = int(min(found.numbers["height"], found.numbers["width"])), int(found.numbers["length"])
        size, frames = (112, 16) if budget.accelerator else (32, 8)
        frames = max(self.settings.tube, min(frames, length) // self.settings.tube * self.settings.tube)
        return [
            Choice("method", "videomae", "nine tubes in ten are hidden: a clip costs a tenth of its tokens"),
            Choice("encoder", "small" if budget.accelerator else "nano", "sees squares of all frames together"),
            Choice("size", min(size, side), "many passes at a small size beat few at a large one"),
            Choice("frames", frames, "sixteen at most on a GPU, eight on a CPU, no more than a film has"),
            Choice("batch_size", max(2, min(64, found.count // 4)), "a quarter of the clips, at most 64"),
        ]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        where = spread(len(dataset), dataset.shards, MEASURE)
        samples = [item for item in dataset.read(where) if isinstance(item, Sample)]
        if len(samples) < 2:
            raise LabelfreeError(
                f"Learning needs at least two clips; {len(samples)} of {len(where)} tried can be read.",
                "Give more or longer films, or set a smaller stride.",
            )
        clips, _ = dataset.origin()
        assert isinstance(clips, Clips)
        form = clips.form
        pixels = np.stack([sample.data[:: len(sample.data) - 1, :, ::3, ::3] for sample in samples]) / form.top
        means, stds = pixels.mean(axis=(0, 1, 3, 4)), pixels.std(axis=(0, 1, 3, 4))
        if not (stds > 1e-6).any():
            raise LabelfreeError(
                f"All frames are of one constant value ({means[0] * form.top:.0f}): there is nothing to learn.",
                "Check how they were written.",
            )
        moved = [np.diff(sample.data[:, :, ::3, ::3].astype(np.float32), axis=0) / form.top for sample in samples]
        self._form, self._cut = form, clips.cut
        self._mean, self._std = means.tolist(), np.maximum(stds, 1e-3).tolist()
        self._motion = float(max(np.sqrt(np.mean([np.square(m).mean() for m in moved])) / max(stds.mean(), 1e-3), 1e-2))

    def state(self) -> dict[str, Any]:
        form = None if self._form is None else asdict(self._form)
        cut = None if self._cut is None else asdict(self._cut)
        return {"form": form, "cut": cut, "mean": self._mean, "std": self._std, "motion": self._motion}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._form = None if state["form"] is None else Form(**state["form"])
        self._cut = None if state["cut"] is None else Cut(**state["cut"])
        self._mean, self._std, self._motion = list(state["mean"]), list(state["std"]), float(state["motion"])

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        data = torch.from_numpy(np.stack([sample.data for sample in samples]))
        shape = data.shape[4] / data.shape[3]
        return Batch(
            data=data,
            index=torch.tensor([sample.index for sample in samples]),
            group=torch.tensor([sample.group for sample in samples]),
            extra={"aspect": torch.tensor([s.meta.get("aspect", shape) for s in samples], dtype=torch.float32)},
        )

    def _shown(self, batch: Batch, places: Tensor, boxes: Tensor) -> Tensor:
        """(B, T, C, size, size) in [0, 1] and a little beyond: the frames at `places`, each cut to its clip's box."""
        chosen = frames_at(batch.data, places)
        top = 255 if chosen.dtype == torch.uint8 else 65535
        return crop(chosen.flatten(1, 2), boxes, self.size).mul_(1 / top).unflatten(1, chosen.shape[1:3])

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = self._scale(x)
        return (x - mean) / std

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel (C, 1, 1) of films (B, T, C, H, W)."""
        mean, std = self._mean or [0.5] * x.shape[2], self._std or [0.25] * x.shape[2]
        return constant(tuple(mean), x.device)[:, None, None], constant(tuple(std), x.device)[:, None, None]

    def prepare(self, batch: Batch) -> Batch:
        start = max(0, (batch.data.shape[1] - self.frames) // 2)
        places = torch.arange(start, start + self.frames, device=batch.data.device).expand(len(batch), -1)
        boxes = central_boxes(batch.extra["aspect"])
        return batch.with_(data=self._normalised(self._shown(batch, places, boxes).clamp_(0, 1)), extra={"crop": boxes})

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        if policy == "none":
            return self.prepare(batch).with_(draw=draw)
        return self._random(batch, draw, policy, self._stretch(batch, draw, self.frames))

    def _stretch(self, batch: Batch, draw: Draw, reach: int) -> Tensor:
        """(B, reach) numbers of frames in a row, from a random one on."""
        room = max(batch.data.shape[1] - reach, 0) + 1
        return draw.integers("start", room)[:, None] + torch.arange(reach, device=batch.data.device)

    def _random(self, batch: Batch, draw: Draw, policy: str, places: Tensor) -> Batch:
        """A random view of the frames at `places` (B, T)."""
        chosen = self.settings.policy()
        if policy == "light":
            chosen = Policy(crop=(self.settings.light_crop_min, 1.0), flip=chosen.flip)
        elif policy == "local":
            chosen = replace(chosen, crop=LOCAL_CROP)
        boxes = random_boxes(batch.extra["aspect"], draw, chosen)
        x = self._shown(batch, places, boxes).transpose(1, 2)
        joined = recolour(x.flatten(2, 3), draw, chosen)  # one colour map a clip: its frames as one tall picture
        x = joined.unflatten(2, x.shape[2:4]).transpose(1, 2)
        return batch.with_(data=self._normalised(x), extra={"crop": boxes}, draw=draw)

    def transformations(self) -> Mapping[str, Transformation]:
        known: dict[str, tuple[int, Callable[[Batch, Tensor, Draw], Batch]]] = {}
        if self.frames >= SEGMENTS:
            known["order"] = (len(ORDERS), self._reordered)
        known["reversal"] = (2, self._reversed)
        if self._cut is None or self._cut.span >= 2 * self.frames:
            known["speed"] = (2, self._faster)
        return {name: Transformation(count, apply, ordered=True) for name, (count, apply) in known.items()}

    def _reordered(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """Segments in another order (Misra et al. 2016, Shuffle and Learn; of clips, Xu et al. 2019, VCOP).

        Frames that do not divide stay at the end.
        """
        size = self.frames // SEGMENTS
        places, rest = self._stretch(batch, draw, self.frames).split([SEGMENTS * size, self.frames % SEGMENTS], dim=1)
        order = constant(ORDERS, which.device)[which]
        shuffled = places.unflatten(1, (SEGMENTS, size)).gather(1, order[..., None].expand(-1, -1, size))
        return self._random(batch, draw, "light", torch.cat([shuffled.flatten(1), rest], dim=1))

    def _reversed(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """Backwards (Wei et al. 2018, the arrow of time)."""
        places = self._stretch(batch, draw, self.frames)
        return self._random(batch, draw, "light", torch.where(which[:, None] == 1, places.flip(1), places))

    def _faster(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """At twice the speed (Benaim et al. 2020, SpeedNet)."""
        places = self._stretch(batch, draw, 2 * self.frames)
        shift = draw.integers("shift", self.frames + 1)[:, None]
        usual = places[:, : self.frames] + shift
        return self._random(batch, draw, "light", torch.where(which[:, None] == 1, places[:, ::2], usual))

    # ---- tokens

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.encoders.trunk import Trunk

        shape = SIZES[size]
        stem = VideoStem(self.channels, self.settings.tube, self.patch, shape.dim)
        return Trunk(stem, shape.dim, shape.depth, shape.heads, causal=causal)

    def picture_form(self) -> PictureForm:
        return PictureForm(self.channels, self.size, self.size, self.patch, self.frames)

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return batch.data, None

    def token_count(self, batch: Batch) -> int:
        return self.frames // self.settings.tube * self.moment

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Whole tubes through all frames (Tong et al. 2022, VideoMAE, §3.3), the last one in part for an exact share.

        What hardly moves could otherwise be copied from another frame.
        """
        times = self.frames // self.settings.tube
        rank = draw.permutation("tubes", self.moment)[:, None]
        return token_mask((rank + draw.uniform("times", times, 1)).flatten(1), ratio)

    def targets(self, batch: Batch) -> Tensor:
        """(B, N, tube · patch · patch · C) pixels, each channel of each token normalised (VideoMAE's code) or not, or
        changes from frame to frame.
        """
        x, own = batch.data.float(), self.settings
        if own.target == "motion":
            changed = torch.diff(x, dim=1, prepend=x[:, :1]) / self._motion
            return tubes(changed, own.tube, self.patch)
        x = tubes(x, own.tube, self.patch)
        if own.target == "pixels":
            return x
        mean, deviation = moments(x, self.channels)
        return (x - mean) / deviation

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        x, own = view.data.float(), self.settings
        if prediction is not None:
            tokens, found = tubes(x, own.tube, self.patch), prediction
            if own.target == "motion":  # what changed is laid on the frame before, as that was
                found = tubes(torch.cat([x[:, :1], x[:, :-1]], dim=1), own.tube, self.patch) + prediction * self._motion
            elif own.target == "normalised":  # what the token itself was normalised by is not predicted
                mean, deviation = moments(tokens, self.channels)
                found = prediction * deviation + mean
            tokens = found if mask is None else torch.where(mask[..., None], found, tokens)
            x = joined(tokens.nan_to_num(), own.tube, self.patch, self.size)
        mean, std = self._scale(x)
        pixels = (x * std + mean).clamp(0, 1).mul(255).round().byte().cpu().numpy()
        return [Sample(data, int(index)) for data, index in zip(pixels, view.index, strict=True)]

    @property
    def target_dim(self) -> int:
        return self.settings.tube * self.patch**2 * self.channels

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.float() - target).square().mean(dim=-1)

    def grid(self, count: int) -> tuple[int, ...]:
        across = self.size // self.patch
        return (count // across**2, across, across)

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        aspect = sample.meta.get("aspect", sample.data.shape[3] / sample.data.shape[2])
        step = max(1, len(sample.data) // 8)
        seconds = step / (self._cut.fps if self._cut else self.settings.fps)
        content = base64.b64encode(films.moving(sample.data[::step], aspect, 96, seconds)).decode()
        return f'<img src="data:image/webp;base64,{content}" alt="{html.escape(f"clip {sample.index}")}">'

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """What is seen and where it moves: mean pixels and mean change between frames, at 16 × 16, standardised."""
        return list(standardised(self, (train, *others), self._seen, 64))

    def _seen(self, batch: Batch) -> Tensor:
        x = crop(batch.data.flatten(1, 2), central_boxes(batch.extra["aspect"]), min(self.size, 16))
        x = x.unflatten(1, batch.data.shape[1:3]) / (255 if batch.data.dtype == torch.uint8 else 65535)
        return torch.cat([x.mean(dim=1), x.diff(dim=1).abs().mean(dim=1)], dim=1).flatten(1)


#: Every order of the segments.
ORDERS = tuple(itertools.permutations(range(SEGMENTS)))


# ---- guessing the kind of data


def _recognise_path(path: Path) -> tuple[float, str]:
    suffix = path.suffix.lower()
    if path.is_dir():
        frames, share = sources.share_of(path, pictures.SUFFIXES)
        if frames and all(re.fullmatch(r"frame[ _-]?\d+", p.stem.lower()) for p in frames):
            return 0.97 * share, f"{len(frame_folders(path)):,} folders of frames"
        return sources.recognise_folder(path, films.SUFFIXES, "film", _recognise_path)
    if suffix in films.SUFFIXES and path.is_file():
        return 0.95, "a film file"
    if suffix in sources.ARRAYS and path.is_file():
        found_arrays = [_recognise_shape(a.shape, f"an array {a.shape}") for a in sources.load_arrays(path).values()]
        return max(found_arrays, default=(0.0, ""))
    if suffix in sources.BINARY and path.is_file():
        names = [name for name in encoded_columns(sources.schema_of(path)) if name.lower() in FILMS.columns[:4]]
        return (0.95, f"films in column '{names[0]}'") if names else recognise_listed(path, FILMS)
    return recognise_listed(path, FILMS)


def _recognise_shape(shape: tuple[int, ...], words: str) -> tuple[float, str]:
    return (0.95, words) if len(shape) == 5 and min(shape) > 0 else (0.0, "")
