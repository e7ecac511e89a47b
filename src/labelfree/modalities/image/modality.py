"""Pictures: photographs, scans, drawings, sensor tiles; any size, any number of channels, 8 or 16 bits."""

from __future__ import annotations

import base64
import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from labelfree.data import sources
from labelfree.data.batch import Batch, Sample, Unreadable
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.encoded import Source, has_feature
from labelfree.data.named import recognise_names
from labelfree.data.on_device import constant
from labelfree.data.pictures import (
    SUFFIXES,
    Form,
    Header,
    as_array,
    common_shape,
    decode,
    header,
    is_encoded,
    keep,
    some_values,
    thumbnail,
    value_range,
)
from labelfree.data.spread import spread
from labelfree.errors import LabelfreeError, reason_of
from labelfree.losses.masked import value_error
from labelfree.modalities.base import Budget, Choice, Modality, PictureForm, Transformation, token_mask
from labelfree.modalities.image.features import standardised
from labelfree.modalities.image.settings import ImageSettings
from labelfree.modalities.image.sources import (
    PICTURES,
    open_source,
    recognise_array,
    recognise_items,
    recognise_path,
)
from labelfree.modalities.image.tokens import block_scores, grey, joined, moments, square_scores, squares
from labelfree.modalities.image.views import (
    Policy,
    central_boxes,
    crop,
    neighbouring_boxes,
    patch_side,
    random_boxes,
    random_sigma,
    recolour,
)
from labelfree.needs import Need

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Orders of tiles in the jigsaw task (Carlucci et al. 2019 use 30).
ORDERS = 30
#: Pictures whose headers are read before training, and whose pixels are, for statistics.
LOOK_AT, MEASURE = 1000, 2048
#: Values that are enough to know their range.
MEASURE_VALUES = 1 << 22


class Pictures(Dataset):
    """A source of pictures in compact form: (C, H, W) uint8 or uint16, all of one size.

    Pictures of another size than `form` are resized to it; `meta["aspect"]` remembers the true width / height.
    """

    def __init__(self, source: Source, form: Form, found: Description) -> None:
        self.source, self.form, self._found = source, form, found
        self.shards, self.reach, self.unreadable = source.shards, source.reach, source.closed

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> list[Sample | Unreadable]:
        return [self._decoded(i, item) for i, item in zip(indices, self.source.fetch(indices), strict=True)]

    def _decoded(self, index: int, item: Any) -> Sample | Unreadable:
        try:
            if isinstance(item, Exception):
                raise item
            side, alpha = max(self.form.height, self.form.width), self.form.channels in (2, 4)
            picture = decode(item, side, alpha) if is_encoded(item) else as_array(item, alpha)
            height, width = picture.shape[:2]
            return Sample(keep(picture, self.form), index, meta={"aspect": width / height})
        except Exception as error:  # damaged files make decoders raise nearly anything
            return Unreadable(index, self.name(index), reason_of(error))

    def describe(self) -> Description:
        return self._found

    def fingerprint(self) -> str:
        return sources.hash_of(self.source.fingerprint(), self.form)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def columns(self) -> Sequence[str]:
        return self.source.columns()

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns():
            raise self.source.no_column(name)
        return self.source.column(name)


def _header_of(item: Any) -> Header:
    if isinstance(item, Exception):
        raise item
    if is_encoded(item):
        return header(item)
    picture = as_array(item)
    height, width = picture.shape[:2]
    return Header(width, height, picture.shape[2] if picture.ndim == 3 else 1, str(picture.dtype))


def look_through(source: Source) -> tuple[list[tuple[int, Header]], list[Unreadable]]:
    """Headers of up to `LOOK_AT` pictures spread over the source, and those that have none."""
    where = spread(len(source), source.shards, LOOK_AT)
    headers: list[tuple[int, Header]] = []
    unreadable: list[Unreadable] = []
    for start in range(0, len(where), 64):
        chunk = where[start : start + 64]
        for index, item in zip(chunk, source.fetch(chunk), strict=True):
            try:
                headers.append((index, _header_of(item)))
            except Exception as error:  # damaged files make decoders raise nearly anything
                unreadable.append(Unreadable(index, source.name(index), reason_of(error)))
    return headers, unreadable


def find_form(source: Source, headers: list[tuple[int, Header]], channels: int | None, store: int) -> Form:
    """The form that keeps what the source has, at sides of at most `store`.

    Raises:
        LabelfreeError: pictures differ in channels in a way that cannot be brought together.
    """
    shape = common_shape([found for _, found in headers], channels, store, "pictures")
    if all(found.dtype == "uint8" for _, found in headers):
        return Form(*shape)
    low, high = _measured_range(source, [(index, found) for index, found in headers if found.dtype != "uint8"])
    return Form(*shape, bits=16, low=low, high=high)


def _measured_range(source: Source, headers: list[tuple[int, Header]]) -> tuple[float, float]:
    """The range of pictures spread over the source: of 64, or of more where they are small."""
    count = max(64, MEASURE_VALUES // max(found.width * found.height * found.channels for _, found in headers))
    values = []
    for item in source.fetch([index for index, _ in headers[:: max(1, len(headers) // count)]]):
        with suppress(Exception):  # damaged files make decoders raise nearly anything; they are listed when read
            picture = decode(item) if is_encoded(item) else as_array(item)
            values += [some_values(picture)] if picture.dtype != np.uint8 else []
    return value_range(np.concatenate(values)) if values else (0.0, 1.0)


def _description(
    source: Source, form: Form, headers: list[tuple[int, Header]], unreadable: list[Unreadable]
) -> Description:
    sides = sorted({(found.width, found.height) for _, found in headers}, key=lambda size: (size[0] * size[1], size))
    span = "×".join(map(str, sides[0])) + (f" … {'×'.join(map(str, sides[-1]))}" if len(sides) > 1 else "")
    channels = Counter(found.channels for _, found in headers)
    facts = {
        "source": source.words,
        "sizes": span,
        "channels": " and ".join(str(count) for count, _ in channels.most_common()),
        "depth": f"{form.bits} bits",
        "kept as": f"{form.channels}×{form.height}×{form.width}",
    }
    if unreadable:
        facts["unreadable"] = f"{len(unreadable)} of {len(headers) + len(unreadable):,} looked at"
    middle = np.median([(found.height, found.width) for _, found in headers], axis=0)
    numbers = {"height": float(middle[0]), "width": float(middle[1])}
    return Description("image", len(source), facts, numbers)


class Image(Modality):
    """Pictures. A view is (B, C, size, size), normalised; `extra["crop"]` (B, 4) is the box it shows.

    Boxes are x0, y0, x1, y1 as fractions of the picture; x0 > x1 where the view is flipped. Tokens are patches in
    reading order.
    """

    name = "image"
    settings_class = ImageSettings
    suffixes = SUFFIXES
    signal = True
    offers: ClassVar[frozenset[Need]] = frozenset(
        {Need.VIEWS, Need.TARGETS, Need.MASK, Need.ORDER, Need.TRANSFORMATIONS, Need.PICTURES}
    )
    patched = True

    def __init__(self, settings: ImageSettings | None = None) -> None:
        super().__init__(settings)
        self._form: Form | None = None
        self._mean: list[float] = []
        self._std: list[float] = []
        self._opened_channels: int | None = None

    # ---- sizes that encoders ask for

    @property
    def size(self) -> int:
        return self.settings.size

    @property
    def channels(self) -> int:
        """Channels of a view: as set, as fitted, or as the source that was opened has."""
        if self.settings.channels != "auto":
            return self.settings.channels
        if self._form is not None:
            return self._form.channels
        return self._opened_channels or 3

    @property
    def view_size(self) -> int:
        """Side of a contrast view; pictures may be looked at in more detail later (Touvron et al. 2019, FixRes, §3)."""
        return self.size if self.settings.view_size == "auto" else self._in_patches(self.settings.view_size)

    @property
    def local_size(self) -> int:
        """Side of a small crop: half that of a picture."""
        return self._in_patches(max(1, self.size // 2))

    def _in_patches(self, side: int) -> int:
        """The side, or a little less so that patches divide it."""
        return side // self.patch * self.patch or side

    @property
    def patch(self) -> int:
        """Side of a token's square in pixels. Raises LabelfreeError where it does not divide the size."""
        return patch_side(self.size, self.settings.patch)

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if isinstance(source, str | Path):
            return recognise_path(Path(source).expanduser())
        if isinstance(source, np.ndarray) or type(source).__module__ == "torch":
            return recognise_array(tuple(source.shape), str(source.dtype).removeprefix("torch."))
        if sources.is_hugging_face(source):
            fits = has_feature(source, PICTURES)
            return (0.95, "a Hugging Face dataset with an image column") if fits else (0.0, "")
        if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, dict):
            return max(recognise_names(source, PICTURES), recognise_items(source))
        return 0.0, ""

    def open(self, source: Any) -> Pictures:
        opened = open_source(source, self.settings.column)
        if len(opened) == 0:
            raise LabelfreeError(f"The source is empty: {opened.words}.", "Give one with pictures in it.")
        headers, unreadable = look_through(opened)
        if not headers:
            example = unreadable[0]
            raise LabelfreeError(
                f"None of the {len(unreadable)} pictures looked at can be read; '{example.name}': {example.reason}.",
                "Check the source, or name another modality.",
            )
        form = self._form
        if form is None:
            store = self.size + min(self.size, 64) if self.settings.store == "auto" else self.settings.store
            wanted = None if self.settings.channels == "auto" else self.settings.channels
            form = find_form(opened, headers, wanted, store)
            self._opened_channels = form.channels
        return Pictures(opened, form, _description(opened, form, headers, unreadable))

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        from labelfree.modalities.image.defaults import choose

        own = self.settings
        return choose(found, budget, own.size if "size" in own.model_fields_set else None)

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        count = len(dataset)
        if count < 2:
            raise LabelfreeError("Learning needs at least two pictures; one was found.", "Give more pictures.")
        where = spread(count, dataset.shards, MEASURE)
        items = [item for i in range(0, len(where), 256) for item in dataset.read(where[i : i + 256])]
        samples = [item for item in items if isinstance(item, Sample)]
        if len(samples) < 2:
            bad = next(f"'{item.name}': {item.reason}" for item in items if isinstance(item, Unreadable))
            words = f"Only {len(samples)} of {len(where)} pictures tried can be read; {bad}."
            raise LabelfreeError(words, "Check the source.")
        pictures, _ = dataset.origin()
        assert isinstance(pictures, Pictures)
        self._form = pictures.form
        pixels = np.concatenate([sample.data.reshape(len(sample.data), -1)[:, ::3] for sample in samples], axis=1)
        means = pixels.mean(axis=1, dtype=np.float64) / self._form.top
        stds = pixels.std(axis=1, dtype=np.float64) / self._form.top
        if not (stds > 1e-6).any():
            raise LabelfreeError(
                f"All pictures are of one constant value ({means[0] * self._form.top:.0f}): there is nothing to learn.",
                "Check how they were written.",
            )
        if all(np.array_equal(samples[0].data, sample.data) for sample in samples[1:]):
            raise LabelfreeError("All pictures are the same: there is nothing to learn.", "Give different pictures.")
        self._mean = [float(mean) for mean in means]
        self._std = [float(max(std, 1e-3)) for std in stds]

    def state(self) -> dict[str, Any]:
        form = None if self._form is None else asdict(self._form)
        return {"form": form, "mean": self._mean, "std": self._std}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._form = None if state["form"] is None else Form(**state["form"])
        self._mean, self._std = list(state["mean"]), list(state["std"])

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        data = torch.from_numpy(np.stack([sample.data for sample in samples]))
        shape = data.shape[3] / data.shape[2]
        aspect = torch.tensor([sample.meta.get("aspect", shape) for sample in samples], dtype=torch.float32)
        index = torch.tensor([sample.index for sample in samples])
        group = torch.tensor([sample.group for sample in samples])
        return Batch(data, index, group=group, extra={"aspect": aspect})

    def _unit(self, pictures: Tensor, boxes: Tensor, size: int, sigma: Tensor | None = None) -> Tensor:
        top = 255 if pictures.dtype == torch.uint8 else 65535
        return crop(pictures, boxes, size, sigma).mul_(1 / top)

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = self._scale(x)
        return (x - mean) / std

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) mean and deviation of the channels of pictures `x` (B, C, H, W) in the training data."""
        mean, std = self._mean or [0.5] * x.shape[1], self._std or [0.25] * x.shape[1]
        return constant(tuple(mean), x.device)[:, None, None], constant(tuple(std), x.device)[:, None, None]

    def prepare(self, batch: Batch) -> Batch:
        boxes = central_boxes(batch.extra["aspect"])
        x = self._unit(batch.data, boxes, self.size).clamp_(0, 1)
        return batch.with_(data=self._normalised(x), extra={"crop": boxes})

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        if policy == "none":
            return self.prepare(batch).with_(draw=draw)
        chosen, size = self.settings.policy(), self.view_size
        if policy == "light":
            chosen, size = Policy(crop=(self.settings.light_crop_min, 1.0), flip=chosen.flip), self.size
        elif policy == "local":
            chosen, size = replace(chosen, crop=self.settings.local_crop), self.local_size
        x, boxes = self._random(batch, draw, chosen, size)
        return batch.with_(data=self._normalised(x), extra={"crop": boxes}, draw=draw)

    def _random(self, batch: Batch, draw: Draw, policy: Policy, size: int) -> tuple[Tensor, Tensor]:
        boxes = random_boxes(batch.extra["aspect"], draw, policy)
        sigma = random_sigma(draw, policy)
        return recolour(self._unit(batch.data, boxes, size, sigma), draw, policy), boxes

    def transformations(self) -> Mapping[str, Transformation]:
        return {
            "rotation": Transformation(4, self._rotated),
            "jigsaw": Transformation(ORDERS, self._jigsaw),
            "position": Transformation(8, self._beside),
        }

    def _rotated(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """Quarter turns to the left (Gidaris et al. 2018)."""
        view = self.view(batch, draw, "light")
        turns = which[:, None, None, None]
        x = torch.where(turns % 2 == 1, view.data.transpose(2, 3), view.data)
        x = torch.where((turns == 1) | (turns == 2), x.flip(2), x)
        return view.with_(data=torch.where(turns >= 2, x.flip(3), x))

    def _jigsaw(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """A view cut into 3×3 tiles that are put down in another order (Noroozi & Favaro 2016; as one picture)."""
        tile = -(-self.size // 3)
        policy = Policy(crop=(self.settings.light_crop_min, 1.0), flip=self.settings.policy().flip)
        x, boxes = self._random(batch, draw, policy, 3 * tile)
        count, channels = x.shape[:2]
        tiles = x.view(count, channels, 3, tile, 3, tile).permute(0, 2, 4, 1, 3, 5).reshape(count, 9, -1)
        order = constant(jigsaw_orders(), x.device)[which]
        tiles = tiles.gather(1, order[..., None].expand_as(tiles)).view(count, 3, 3, channels, tile, tile)
        x = tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, 3 * tile, 3 * tile)[..., : self.size, : self.size]
        return batch.with_(data=self._normalised(x), extra={"crop": boxes}, draw=draw)

    def _beside(self, batch: Batch, which: Tensor, draw: Draw) -> Batch:
        """A patch of the picture, and to its right the one that lies beside it in one of eight directions (Doersch et
        al. 2015, §3), half as large as a view each, on a picture that is empty else.
        """
        half = self.size // 2
        boxes = neighbouring_boxes(central_boxes(batch.extra["aspect"]), which, draw)
        first, second = (self._normalised(self._unit(batch.data, box, half).clamp_(0, 1)) for box in boxes)
        x = first.new_zeros(len(first), first.shape[1], self.size, self.size)
        top = (self.size - half) // 2
        x[..., top : top + half, :half], x[..., top : top + half, self.size - half :] = first, second
        return batch.with_(data=x, extra={"crop": boxes[0]}, draw=draw)

    # ---- tokens

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.timm import Timm

        return Timm.transformer(size, self, causal)

    def picture_form(self) -> PictureForm:
        stem = 0 if self.settings.stem == "auto" else self.settings.stem
        own = self.settings
        return PictureForm(self.channels, self.size, self.size, self.patch, stem=stem, class_token=own.class_token)

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return batch.data[:, None], None

    def token_count(self, batch: Batch) -> int:
        return batch.data.shape[2] // self.patch * (batch.data.shape[3] // self.patch)

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        across = batch.data.shape[2] // self.patch
        scores = {
            "random": lambda: draw.uniform("mask", across**2),
            "squares": lambda: square_scores(draw, across),
            "block": lambda: block_scores(draw, across, ratio),
            "blocks": lambda: block_scores(draw, across, ratio, 4),
        }
        return token_mask(scores[self.settings.mask_shape](), ratio)

    def hide(self, batch: Batch, mask: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        """Hidden tokens are, unless the target is colours: then nothing is hidden but these, in the whole picture."""
        if self.settings.target != "colour":
            return batch, mask
        return batch.with_(data=self._grey(batch.data)), torch.zeros_like(mask)

    def _grey(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise LabelfreeError(f"Pictures of {x.shape[1]} channel(s) have no colours to predict.", "Set channels=3.")
        return grey(x, *self._scale(x))

    def targets(self, batch: Batch) -> Tensor:
        """(B, N, patch·patch·C) of each patch: its pixels, normalised within the patch (MAE, He et al. 2022, §4.1) or
        not, or how these differ from grey ones of the same brightness.
        """
        x = batch.data.float()
        if self.settings.target == "colour":
            return squares(x - self._grey(x), self.patch)
        x = squares(x, self.patch)
        if self.settings.target == "pixels":
            return x
        mean, deviation = moments(x)
        return (x - mean) / deviation

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        x = view.data.float()
        if prediction is not None:
            tokens, found = squares(x, self.patch), prediction
            if self.settings.target == "colour":
                found = squares(self._grey(x), self.patch) + prediction
            elif self.settings.target == "normalised":  # what the patch itself was normalised by is not predicted
                mean, deviation = moments(tokens)
                found = prediction * deviation + mean
            tokens = found if mask is None else torch.where(mask[..., None], found, tokens)
            x = joined(tokens.nan_to_num(), self.patch, self.size)
        mean, std = self._scale(x)
        pixels = (x * std + mean).clamp(0, 1).mul(255).round().byte().cpu().numpy()
        return [Sample(data, int(index)) for data, index in zip(pixels, view.index, strict=True)]

    def grid(self, count: int) -> tuple[int, ...]:
        return (math.isqrt(count), math.isqrt(count))

    @property
    def target_dim(self) -> int:
        return self.patch**2 * self.channels

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return value_error(prediction.float(), target, self.settings.target_error)

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        aspect = sample.meta.get("aspect", sample.data.shape[2] / sample.data.shape[1])
        content = base64.b64encode(thumbnail(sample.data, aspect, 96)).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{html.escape(f"picture {sample.index}")}">'

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """Pixels at no more than 16 × 16 (a linear model does no better with more), standardised by `train`."""
        return list(standardised(self, (train, *others), self._pixels, 256))

    def _pixels(self, batch: Batch) -> Tensor:
        return self._unit(batch.data, central_boxes(batch.extra["aspect"]), min(self.size, 16)).flatten(1)


@lru_cache
def jigsaw_orders(count: int = ORDERS, tiles: int = 9) -> tuple[tuple[int, ...], ...]:
    """Permutations that differ in as many places as can be: each next one is farthest from all before it."""
    every = np.array(list(permutations(range(tiles))), dtype=np.int8)
    chosen = [0]
    distance = np.full(len(every), tiles + 1)
    while len(chosen) < count:
        distance = np.minimum(distance, (every != every[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return tuple(map(tuple, every[chosen].tolist()))
