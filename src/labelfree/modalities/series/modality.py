"""Series: sensors, logs, traces — numbers over time, in one channel or many, of equal length or not, with gaps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from labelfree.data.batch import Batch, Sample
from labelfree.data.columns import (
    TINY,
    ReadOptions,
    is_number,
    looks_wide,
    numeric_names,
    with_numbers,
)
from labelfree.data.dataset import Dataset, Description
from labelfree.data.draw import Draw
from labelfree.data.on_device import on_device
from labelfree.data.recordings import FILES, read_recordings
from labelfree.data.sources import ARRAYS, TABLES, frame, load_arrays, read_head, share_of
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import TargetError, value_error
from labelfree.modalities.base import Budget, Choice, Modality, Shared, Transformation, hidden_count, span_mask
from labelfree.modalities.series import views as augment
from labelfree.modalities.series.dataset import SeriesDataset, choose_window, cut_windows
from labelfree.modalities.series.features import ChannelStatistics, raw_features, resampled, sparkline
from labelfree.modalities.series.tokens import SeriesStem, patches, valid_tokens
from labelfree.needs import Need
from labelfree.settings import Names, Settings, Share

if TYPE_CHECKING:
    from labelfree.encoders.base import Encoder

#: Shares of a series that small crops are.
LOCAL_CROP = (0.2, 0.5)
#: Steps in a row that are much alike: a copy of one nearly tells the others.
ALIKE = 16
#: Crops of longer series are no longer than this many steps (Yue et al. 2022 cut training series there).
LONGEST = 3000


class SeriesSettings(Settings):
    """How series are read, cut, normalised and augmented."""

    layout: Literal["auto", "long", "wide"] = "auto"
    """table with a row a time step (long) or a row a series (wide)"""
    columns: Names = ()
    """columns that are channels, by commas; empty: all numeric ones that look like measurements"""
    exclude: Names = ()
    """columns that are not channels, such as the label, by commas"""
    group: str = ""
    """column that says whose series it is (person, device); a long table is also cut by it"""
    time: str = ""
    """column of times; empty: found by its type or name"""
    gap: NonNegativeFloat = 10.0
    """a step in time of more than so many median steps starts a new recording; 0 for never"""
    window: NonNegativeInt | Literal["auto"] = "auto"
    """steps of the windows that long recordings are cut into; 0 for whole recordings"""
    stride: NonNegativeInt = 0
    """steps from one window to the next; 0 for the window itself"""
    patch: PositiveInt | Literal["auto"] = "auto"
    """steps a token; auto: 1 for convolutions, about a fortieth of the length for the transformer"""
    normalise: Literal["channel", "series", "none"] = "channel"
    """by the mean and deviation of each channel in the training data, or of each series by itself"""
    jitter: NonNegativeFloat = 0.1
    """views: deviation of the noise added, in deviations of the channel"""
    scaling: NonNegativeFloat = 0.2
    """views: deviation of the factor of each channel"""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.5
    """views: least share of the series that a crop keeps (it is stretched to the old length); 1 for no crop"""
    permutation: PositiveInt = 1
    """views: largest number of segments that are shuffled; 1 for none"""
    masking: Share = 0.1
    """views: share of steps that go missing"""
    span: NonNegativeInt = 0
    """masks: steps that are hidden together; 0 for sixteen, or a token"""
    target_error: TargetError = "squared"
    """how predicted values are compared: squared or absolute differences"""


class Series(Modality):
    """Multivariate series. A token is a patch of consecutive steps; a missing value is NaN everywhere."""

    name = "series"
    settings_class = SeriesSettings
    signal = True
    offers = frozenset({Need.VIEWS, Need.ALIGNED_VIEWS, Need.TARGETS, Need.MASK, Need.ORDER, Need.TRANSFORMATIONS})

    def __init__(self, settings: SeriesSettings | None = None) -> None:
        super().__init__(settings)
        self._channels: tuple[str, ...] = ()
        self._mean = torch.zeros(0)
        self._std = torch.ones(0)
        self._length = 0
        self._window = 0
        self._fitted = False
        self._patch = 1

    # ---- reading

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        if isinstance(source, str | Path):
            return _recognise_path(Path(source).expanduser())
        if isinstance(source, Mapping):
            return _recognise_arrays({name: np.asarray(array) for name, array in source.items()})
        if isinstance(source, list | tuple) and len(source):
            try:
                first = np.asarray(source[0])
            except ValueError:  # things of several shapes
                return 0.0, ""
            return (0.7, "a list of arrays") if first.ndim in (1, 2) and first.dtype.kind in "fiu" else (0.0, "")
        if (table := frame(source)) is not None:
            return _recognise_table(table)
        if hasattr(source, "shape"):
            return _recognise_arrays({"": np.asarray(source)})
        return 0.0, ""

    def open(self, source: Any) -> SeriesDataset:
        own = self.settings
        if isinstance(source, SeriesDataset):
            return source
        options = ReadOptions(
            own.layout, own.columns, own.exclude, own.group, own.time, own.gap, self._channels if self._fitted else ()
        )
        found = read_recordings(source, options)
        if self._fitted:
            window = self._window
        else:
            window = choose_window(found)[0] if own.window == "auto" else own.window
            self._channels, self._window = found.channels, window
        if not len(cut_windows(found.spans, window, own.stride)[0]):
            longest = int((found.spans[:, 1] - found.spans[:, 0]).max())
            raise LabelfreeError(
                f"No recording is long enough for a window of {window} steps: the longest has {longest}.",
                "Set a smaller window.",
            )
        return SeriesDataset(found, window, own.stride)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        length = found.numbers.get("length", 0)
        window = int(found.numbers.get("window", 0))
        chosen = [
            Choice("method", "ts2vec", "crops of a series agree on what they share: no invariance is assumed"),
            Choice("encoder", "dilated", "each step sees the whole series; small and fast on any machine"),
            Choice("batch_size", 8, "as published; more steps count for more than larger ones"),
        ]
        if budget.accelerator and found.count * length > 1e7:
            chosen[-1] = Choice("batch_size", 64, "a GPU is idle at eight series a step")
        words = "the source gives whole series" if not window else f"gives {found.count:,} windows"
        return [*chosen, Choice("window", window, words)]

    # ---- statistics

    def fit(self, dataset: Dataset) -> None:
        found = ChannelStatistics()
        for start in range(0, len(dataset), 1024):
            for item in dataset.read(range(start, min(start + 1024, len(dataset)))):
                if isinstance(item, Sample):
                    found.add(item.data)
        mean, std = found.result()
        if len(self._channels) != len(mean):
            self._channels = tuple(str(c) for c in range(len(mean)))
        self._learn(mean, std, min(int(np.median(found.lengths)), LONGEST))

    def _learn(self, mean: Any, std: Any, length: int) -> None:
        self._mean = torch.tensor(np.asarray(mean), dtype=torch.float32)
        self._std = torch.tensor(np.asarray(std), dtype=torch.float32)
        self._length, self._fitted = length, True

    def state(self) -> dict[str, Any]:
        return {
            "channels": list(self._channels),
            "mean": self._mean.tolist(),
            "std": self._std.tolist(),
            "length": self._length,
            "window": self._window,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._channels, self._window = tuple(state["channels"]), int(state["window"])
        self._learn(state["mean"], state["std"], int(state["length"]))

    @property
    def channels(self) -> int:
        """Channels of the training data."""
        return len(self._mean)

    @property
    def length(self) -> int:
        """Median length of the training series, at most `LONGEST`."""
        return self._length

    # ---- batches and views

    def collate(self, samples: Sequence[Sample]) -> Batch:
        lengths = [len(sample.data) for sample in samples]
        longest = max(lengths)
        equal = min(lengths) == longest
        timed = all(sample.time is not None for sample in samples)
        return Batch(
            data=torch.from_numpy(np.stack([_padded(sample.data, longest) for sample in samples])),
            index=torch.tensor([sample.index for sample in samples]),
            lengths=None if equal else torch.tensor(lengths),
            time=torch.from_numpy(np.stack([_padded(s.time, longest) for s in samples])) if timed else None,  # type: ignore[arg-type]
            group=torch.tensor([sample.group for sample in samples]),
        )

    def prepare(self, batch: Batch) -> Batch:
        return batch.with_(data=self._normalise(batch.data))

    def _normalise(self, x: Tensor) -> Tensor:
        if self.settings.normalise == "none":
            return x
        mean, deviation = self._scale(x)
        return (x - mean) / deviation

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What values (B, T, C) are normalised by: mean and deviation, that broadcast with them."""
        if self.settings.normalise == "channel":
            return on_device(self._mean, x.device), on_device(self._std, x.device)
        if self.settings.normalise == "none":
            return x.new_zeros(()), x.new_ones(())
        mean = x.nanmean(dim=1, keepdim=True)
        deviation = (x - mean).square().nanmean(dim=1, keepdim=True).sqrt()
        least = TINY + 3e-7 * mean.abs()  # below is what rounding makes of a constant
        return mean, torch.where(deviation > least, deviation, torch.ones_like(deviation))

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        own = self.settings
        x, lengths = self._normalise(batch.data), batch.steps()
        if policy in ("contrast", "local"):
            least, most = LOCAL_CROP if policy == "local" else (own.crop, 1.0)
            x = augment.crop(x, lengths, draw, least, most) if least < 1 else x
            x = augment.permute(x, lengths, draw, own.permutation) if own.permutation > 1 else x
            x = augment.scale(x, draw, own.scaling) if own.scaling else x
            x = augment.jitter(x, draw, own.jitter) if own.jitter else x
            x = augment.blank(x, draw, own.masking) if own.masking else x
        elif policy == "light":
            x = augment.scale(x, draw, own.scaling / 2) if own.scaling else x
        return batch.with_(data=x, draw=draw, time=None)

    def overlapping_views(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch, Shared]:
        """Random crops that overlap, in whole tokens (see `series.views.overlap`)."""
        patch = self.patch
        usual = max(2, -(-(self._length or batch.data.shape[1]) // patch))
        found = augment.overlap(draw, -(-batch.steps() // patch), usual)
        one, two = (self._crop(batch, draw.view(n), *found.crops[n], usual) for n in (0, 1))
        return one, two, found.shared

    def _crop(self, batch: Batch, draw: Draw, start: Tensor, count: int, usual: int) -> Batch:
        """`count` tokens from token `start` (B,) on."""
        patch, lengths = self.patch, batch.steps()
        first = start * patch
        steps = first[:, None] + torch.arange(count * patch, device=first.device)
        x = augment.take_steps(self._normalise(batch.data), steps)
        full = batch.lengths is None and usual * patch <= batch.data.shape[1]
        left = None if full else (lengths - first).clamp(0, count * patch)
        return batch.with_(data=x, lengths=left, draw=draw, time=None)

    def transformations(self) -> Mapping[str, Transformation]:
        orders = torch.tensor(list(itertools.permutations(range(3))))

        def order(batch: Batch, which: Tensor, draw: Draw) -> Batch:
            view = self.view(batch, draw, "light")
            rows = on_device(orders, which.device)[which]
            return view.with_(data=augment.segments(view.data, view.steps(), rows))

        def reversal(batch: Batch, which: Tensor, draw: Draw) -> Batch:
            view = self.view(batch, draw, "light")
            return view.with_(data=augment.reverse(view.data, view.steps(), which))

        return {"order": Transformation(len(orders), order), "reversal": Transformation(2, reversal)}

    # ---- tokens

    @property
    def patch(self) -> int:
        """Steps a token."""
        return self._patch if self.settings.patch == "auto" else int(self.settings.patch)

    def token_count(self, batch: Batch) -> int:
        return -(-batch.data.shape[1] // self.patch)

    def suggest_patch(self, steps: int) -> int:
        """An encoder says how many steps a token should have; what the user said goes first. Returns what holds."""
        self._patch = steps
        return self.patch

    def transformer(self, size: str, causal: bool) -> Encoder:
        from labelfree.encoders.transformer import SIZES
        from labelfree.encoders.trunk import Trunk

        steps = self.suggest_patch(2 ** max(0, min(5, round(np.log2(max(self._length, 1) / 40)))))
        shape = SIZES[size]
        stem = SeriesStem(self.channels, steps, shape.dim)
        return Trunk(stem, shape.dim, shape.depth, shape.heads, causal=causal, dropout=0.1)

    @property
    def alike(self) -> int:
        return max(1, round(min(ALIKE, self._length - self.patch) / self.patch))

    def sample_mask(self, batch: Batch, draw: Draw, ratio: float) -> Tensor:
        """Spans of tokens; those without any value are hidden last, and padding never."""
        patch = self.patch
        known = ~patches(batch.data, patch).isnan().all(dim=2)
        span = max(1, round(self.settings.span / patch)) if self.settings.span else self.alike
        span = min(span, hidden_count(known.shape[1], ratio))
        return span_mask(draw, known.shape[1], span, ratio, valid_tokens(batch, patch), last=~known)

    def targets(self, batch: Batch) -> Tensor:
        return patches(batch.data, self.patch)

    @property
    def target_dim(self) -> int:
        return self.patch * self.channels

    def token_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return value_error(prediction, target, self.settings.target_error)

    def rebuild(self, view: Batch, prediction: Tensor | None = None, mask: Tensor | None = None) -> list[Sample]:
        x = view.data
        if prediction is not None:
            found = prediction.unflatten(2, (self.patch, -1))
            if mask is not None:
                found = torch.where(mask[..., None, None], found, patches(x, self.patch).unflatten(2, (self.patch, -1)))
            x = found.flatten(1, 2)[:, : x.shape[1]]
        mean, deviation = self._scale(view.data)
        rows = (x * deviation + mean).cpu().numpy()
        lengths = view.steps().tolist()
        return [
            Sample(row[:length], index) for row, length, index in zip(rows, lengths, view.index.tolist(), strict=True)
        ]

    # ---- what comes next

    def ends(self, dataset: Dataset) -> tuple[list[str], list[Sample]]:
        """As many tokens as there are in training before the last ones that were predicted at once."""
        assert isinstance(dataset, SeriesDataset)
        patch, found = self.patch, []
        most = self._context() * patch
        for number, (start, stop) in enumerate(dataset.source.spans.tolist()):
            count = max(patch, min(most, (stop - start) // patch * patch))
            values = dataset.source.values[max(start, stop - count) : stop]
            missing = np.full((count - len(values), values.shape[1]), np.nan, dtype=values.dtype)
            found.append(Sample(np.concatenate([missing, values]), number))
        return [dataset.recording_name(end.index) for end in found], found

    def _context(self) -> int:
        """Tokens of a training sample before those that a whole horizon lay ahead of."""
        count = self._length // self.patch
        return max(1, count - min(self.alike, count // 2))

    def beginning(self, sample: Sample) -> Sample:
        tokens = max(1, min(self._context(), 3 * len(sample.data) // (4 * self.patch)))
        return Sample(sample.data[: tokens * self.patch], sample.index)

    def continued(self, predict_next: Callable[[Batch], Tensor], ends: Sequence[Sample], steps: int) -> np.ndarray:
        batch = self.collate(ends)
        mean, deviation = self._scale(batch.data)
        view = self.prepare(batch).with_(time=None)
        seen = view.data
        known = batch.data.shape[1]
        while seen.shape[1] < known + steps:
            tokens = predict_next(view.with_(data=seen[:, -known:]))
            seen = torch.cat([seen, tokens.reshape(len(ends), -1, self.channels).to(seen.dtype)], dim=1)
        future = seen[:, known : known + steps]
        return (future * deviation + mean).cpu().numpy()

    # ---- for people, and for baselines

    def show(self, sample: Sample) -> str:
        return sparkline(sample.data, self._channels)

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        points = int(min(128, max(8, self._length or 64)))
        return [raw_features(dataset, points) for dataset in (train, *others)]

    def copy_features(self, train: Dataset, others: Sequence[Dataset]) -> list[np.ndarray | Any]:
        """The values, resampled, each channel in its own deviation: statistics tell noise and alike series apart."""
        points = int(min(128, max(8, self._length or 64)))
        found = [resampled(dataset, points) for dataset in (train, *others)]
        deviation = found[0].reshape(-1, found[0].shape[1] // points, points).std(axis=(0, 2)).repeat(points)
        return [part / np.maximum(deviation, 1e-12) for part in found]


def _padded(data: np.ndarray, length: int) -> np.ndarray:
    """Lengthen (T, ...) to `length` steps with NaN."""
    if len(data) == length:
        return data
    return np.concatenate([data, np.full((length - len(data), *data.shape[1:]), np.nan, dtype=data.dtype)])


def _recognise_path(path: Path) -> tuple[float, str]:
    try:
        if path.is_dir():
            files, share = share_of(path, FILES)
            sure = _recognise_path(files[0])[0] if files else 0.0
            return (sure * share, f"{len(files):,} files of numbers") if sure >= 0.5 else (0.0, "")
        if path.suffix.lower() in ARRAYS:
            return _recognise_arrays(load_arrays(path))
        if path.suffix.lower() in TABLES:
            return _recognise_table(read_head(path))
    except LabelfreeError:
        return 0.0, ""
    return 0.0, ""


def _recognise_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[float, str]:
    if "edge_index" in arrays:
        return 0.0, ""  # ends of edges, and features of nodes
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.ndim in (2, 3):
            return 0.8, f"numbers {array.shape}{f' under {name!r}' if name else ''}"
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.ndim in (2, 3):
            return 0.5, f"whole numbers {array.shape}"
    return (0.4, "one series") if any(a.dtype.kind == "f" and a.ndim == 1 for a in arrays.values()) else (0.0, "")


def _recognise_table(table: pa.Table) -> tuple[float, str]:
    table = with_numbers(table)
    numeric = numeric_names(table)
    share = len(numeric) / max(len(table.column_names), 1)
    if not any(is_number(table.schema.field(name).type) for name in numeric):
        return 0.0, ""  # columns without any value may be of anything
    if looks_wide(table):
        return 0.9, f"a table with {len(numeric)} columns numbered through"
    return 0.3 + 0.5 * share, f"a table with {len(numeric)} numeric columns of {len(table.column_names)}"
