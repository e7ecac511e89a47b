"""Statistics of series: of channels over a source for normalising; of samples for people and classical models."""

from __future__ import annotations

from html import escape

import numpy as np

from labelfree.data.batch import Sample
from labelfree.data.dataset import Dataset
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError

_COLOURS = ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00")
_WIDTH, _HEIGHT, _POINTS = 240, 60, 400
#: Numbers that describe a channel, before its values.
_STATISTICS = 15


class ChannelStatistics:
    """Mean and deviation of each channel, gathered series by series; missing values count nothing.

    Attributes:
        lengths: steps of each series.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._sums = np.zeros((3, 0))
        self._ends = np.zeros((2, 0))

    def add(self, series: np.ndarray) -> None:
        """Take in (T, C)."""
        if not self.lengths:
            self._sums = np.zeros((3, series.shape[1]))
            self._ends = np.array([[np.inf], [-np.inf]]) * np.ones(series.shape[1])
        self.lengths.append(len(series))
        x, known = series.astype(np.float64), ~np.isnan(series)
        zeroed = np.where(known, x, 0.0)
        self._sums += [known.sum(axis=0), zeroed.sum(axis=0), np.square(zeroed).sum(axis=0)]
        lowest, highest = np.where(known, x, np.inf).min(axis=0), np.where(known, x, -np.inf).max(axis=0)
        self._ends = np.array([np.minimum(self._ends[0], lowest), np.maximum(self._ends[1], highest)])

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) means and (C,) deviations; 1 for the deviation of a constant channel.

        Raises:
            LabelfreeError: no channel varies.
        """
        varies = self._ends[1] > self._ends[0]
        if not varies.any():
            raise LabelfreeError(
                "Every channel of the source is constant or missing.", "There is nothing to learn from it."
            )
        count = np.maximum(self._sums[0], 1)
        mean = self._sums[1] / count
        variance = self._sums[2] / count - mean**2
        return mean, np.where(varies & (variance > 0), np.sqrt(np.maximum(variance, 0)), 1.0)


def sparkline(values: np.ndarray, channels: tuple[str, ...]) -> str:
    """An SVG of (T, C): a line a channel, each on its own scale; gaps where values are missing."""
    steps = spaced(len(values), _POINTS)
    x = steps / max(len(values) - 1, 1) * (_WIDTH - 4) + 2
    lines = []
    for number in range(values.shape[1]):
        y = values[steps, number].astype(np.float64)
        if np.isnan(y).all():
            continue
        low, high = np.nanmin(y), np.nanmax(y)
        y = _HEIGHT - 3 - (y - low) / (high - low if high > low else 1.0) * (_HEIGHT - 6)
        colour = _COLOURS[number % len(_COLOURS)]
        name = channels[number] if number < len(channels) else str(number)
        lines.append(
            f'<path d="{_path(x, y)}" fill="none" stroke="{colour}" stroke-linecap="round">'
            f"<title>{escape(name)}: {low:.4g} … {high:.4g}</title></path>"
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'
    )


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Line commands; a value alone between missing ones becomes a dot."""
    words, drawing = [], False
    for number, (a, b) in enumerate(zip(x, y, strict=True)):
        if np.isnan(b):
            drawing = False
            continue
        words.append(f"{'L' if drawing else 'M'}{a:.1f} {b:.1f}")
        alone = not drawing and (number + 1 == len(y) or np.isnan(y[number + 1]))
        if alone:
            words.append("h0")
        drawing = True
    return "".join(words)


def describe_series(values: np.ndarray, points: int) -> np.ndarray:
    """(T, C) → (C · (15 + points),): statistics of each channel, and its values resampled to `points` steps."""
    return np.concatenate([_of_channel(values[:, c].astype(np.float64), points) for c in range(values.shape[1])])


def _of_channel(x: np.ndarray, points: int) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(x))
    missing = 1 - len(known) / max(len(x), 1)
    if not len(known):
        return np.concatenate([[missing], np.zeros(_STATISTICS - 1 + points)])
    y = np.interp(np.arange(len(x)), known, x[known])
    z = y - y.mean()
    deviation = y.std()
    steps = np.diff(y)
    lag = (z[1:] * z[:-1]).mean() / deviation**2 if deviation > 0 and len(y) > 1 else 0.0
    slope = np.polyfit(np.linspace(-1, 1, len(y)), y, 1)[0] if len(y) > 1 else 0.0
    spectrum = np.abs(np.fft.rfft(z)) / len(y)
    bands = [band.sum() if len(band) else 0.0 for band in np.array_split(spectrum[1:], 4)]
    statistics = [missing, y.mean(), deviation, y.min(), *np.quantile(y, [0.25, 0.5, 0.75]), y.max(), slope, lag]
    statistics.append(np.abs(steps).mean() if len(steps) else 0.0)
    return np.concatenate([statistics, bands, np.interp(np.linspace(0, len(y) - 1, points), np.arange(len(y)), y)])


def resampled(dataset: Dataset, points: int) -> np.ndarray:
    """(N, C · points) float32: the values alone, resampled, the statistics of `describe_series` left out."""
    values = raw_features(dataset, points)
    return values.reshape(len(values), -1, _STATISTICS + points)[:, :, _STATISTICS:].reshape(len(values), -1)


def raw_features(dataset: Dataset, points: int) -> np.ndarray:
    """(N, F) float32: `describe_series` of every sample; a zero row where one cannot be read."""
    rows: list[np.ndarray | None] = []
    for start in range(0, len(dataset), 1024):
        for item in dataset.read(range(start, min(start + 1024, len(dataset)))):
            rows.append(describe_series(item.data, points) if isinstance(item, Sample) else None)
    width = next((len(row) for row in rows if row is not None), 0)
    return np.stack([np.zeros(width) if row is None else row for row in rows]).astype(np.float32)
