"""Small drawings as inline SVG: they need no script, weigh little, and take their colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np

#: Most points of a line; longer ones are thinned by means.
MOST = 300
#: Width of a character of an axis.
CHARACTER = 6.0
#: How far apart the points of lines are that lie at one place.
SIDE = 8.0
#: Share of a value that differences must exceed: smaller ones are rounding, and are drawn as none.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        style: class of the page's style sheet that colours it.
        title: words shown on pointing at a dot.
        x, y: its points.
        low, high: its interval, if it has one.
        aside: how far right of its places it is drawn, so that it hides no other line.
    """

    style: str
    title: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    aside: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class Frame:
    """Maps values to places on the drawing; `log` makes the horizontal axis logarithmic, `inset` frees its ends."""

    left: float
    right: float
    bottom: float
    top: float
    log: bool = False
    width: float = 360.0
    height: float = 230.0
    margin: tuple[float, float, float, float] = (12.0, 14.0, 34.0, 44.0)  # top, right, bottom, left
    inset: float = 0.0

    @property
    def across(self) -> float:
        """Room between the left and the right margin."""
        return self.width - self.margin[1] - self.margin[3]

    def x(self, value: float) -> float:
        low, high, at = self.left, self.right, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.margin[3] + self.inset + share * (self.across - 2 * self.inset)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 0.5
        return self.height - self.margin[2] - share * (self.height - self.margin[0] - self.margin[2])

    def path(self, line: Line) -> str:
        return " ".join(f"{self.x(a) + line.aside:.1f},{self.y(b):.1f}" for a, b in zip(line.x, line.y, strict=True))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers between low and high."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    lines: Sequence[Line],
    name: str,
    marks: Sequence[tuple[float, str]] = (),
    *,
    log: bool = False,
    percent: bool = False,
    span: tuple[float, float] | None = None,
    dots: bool = False,
    size: tuple[float, float] = (360.0, 230.0),
) -> str:
    """A line chart with intervals as whiskers.

    Args:
        lines: what to draw, the most important last.
        name: what it is called for those who cannot see it.
        marks: places and words of the horizontal axis, which ends with them; round numbers by default.
        log: logarithmic horizontal axis.
        percent: the vertical axis is a share.
        span: of the vertical axis.
        dots: draw the points, those of several lines at one place side by side.
        size: width and height.
    """
    lines = [line for line in (_finite(line) for line in lines) if len(line.x)]
    if not lines:
        return ""
    xs = [place for place, _ in marks] or [x for line in lines for x in line.x]
    everything = np.concatenate([np.asarray([*line.y, *line.low, *line.high], dtype=float) for line in lines])
    low, high = span or _padded(float(everything.min()), float(everything.max()))
    inset = SIDE * len(lines) / 2 if dots else 0.0
    frame = Frame(min(xs), max(xs), low, high, log and min(xs) < max(xs), *size, inset=inset)
    if dots:
        lines = _side_by_side(lines, frame)
    body = [_axes(frame, marks, percent)]
    for line in lines:
        body.append(f'<polyline class="line {line.style}" points="{frame.path(line)}"/>')
        body += [_whisker(frame, line, i) for i in range(len(line.low))]
        body += [_dot(frame, line, i, percent) for i in range(len(line.x))] if dots or len(line.x) == 1 else []
    return _svg(frame, name, "".join(body))


def _side_by_side(lines: Sequence[Line], frame: Frame) -> list[Line]:
    """Lines a little apart, so that no points hide others; over all the width where there is one place."""
    gap = SIDE if frame.left < frame.right else frame.across / (len(lines) + 1)
    return [replace(line, aside=gap * (i - (len(lines) - 1) / 2)) for i, line in enumerate(lines)]


def _svg(frame: Frame, name: str, body: str) -> str:
    size = f'viewBox="0 0 {frame.width:g} {frame.height:g}"'
    return f'<svg class="chart" {size} role="img" aria-label="{escape(name)}">{body}</svg>'


def _finite(line: Line) -> Line:
    """Without points that are not numbers, and thinned to what can be seen."""
    values = [np.asarray(v, dtype=float) for v in (line.x, line.y, line.low, line.high)]
    kept = np.isfinite(values[1])
    values = [v[kept] if len(v) == len(kept) else v for v in values]
    if len(values[0]) > MOST:
        bins = np.array_split(np.arange(len(values[0])), MOST)
        values = [np.array([v[b].mean() for b in bins]) if len(v) else v for v in values]
    return Line(line.style, line.title, *(v.tolist() for v in values))


def _padded(low: float, high: float) -> tuple[float, float]:
    """A span around values; what is constant lies in its middle, with 0 at an end."""
    size = max(abs(low), abs(high))
    space = 0.06 * (high - low) if high - low > ROUNDING * size else size or 1.0
    return low - space, high + space


def _axes(frame: Frame, marks: Sequence[tuple[float, str]], percent: bool) -> str:
    parts = []
    left, right = frame.margin[3], frame.width - frame.margin[1]
    for value in ticks(frame.bottom, frame.top):
        words = f"{100 * value:g} %" if percent else _short(value)
        y = f"{frame.y(value):.1f}"
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y}" dy=".33em" text-anchor="end">{words}</text>')
    free = -math.inf
    for value, words in marks or [(v, _short(v)) for v in ticks(frame.left, frame.right)]:
        rows = words.split("\n")
        half = CHARACTER * max(map(len, rows)) / 2
        if frame.x(value) - half < free:  # it would be printed over the one before it
            continue
        free = frame.x(value) + half
        for i, row in enumerate(rows):
            place = f'x="{frame.x(value):.1f}" y="{frame.height - frame.margin[2] + 15 + 12 * i:.1f}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{escape(row)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    """A number as an axis shows it."""
    if value and (abs(value) >= 1e4 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _whisker(frame: Frame, line: Line, i: int) -> str:
    x, low, high = f"{frame.x(line.x[i]) + line.aside:.1f}", frame.y(line.low[i]), frame.y(line.high[i])
    return f'<line class="whisker {line.style}" x1="{x}" x2="{x}" y1="{low:.1f}" y2="{high:.1f}"/>'


def _dot(frame: Frame, line: Line, i: int, percent: bool) -> str:
    value = f"{line.y[i]:.1%}" if percent else _short(line.y[i])
    between = f" ({line.low[i]:.1%} … {line.high[i]:.1%})" if percent and len(line.low) else ""
    place = f'cx="{frame.x(line.x[i]) + line.aside:.1f}" cy="{frame.y(line.y[i]):.1f}"'
    words = f"<title>{escape(line.title)} {value}{between}</title>"
    return f'<circle class="dot {line.style}" {place} r="3.4">{words}</circle>'


def scatter(points: np.ndarray, styles: Sequence[str], name: str, width: float = 720.0, height: float = 460.0) -> str:
    """A map: (N, 2) points, each with a class of the style sheet; point i has the attribute data-i."""
    p = np.asarray(points, dtype=float)
    (left, bottom), (right, top) = p.min(axis=0), p.max(axis=0)
    frame = Frame(left, right, bottom, top, width=width, height=height, margin=(14.0,) * 4)
    radius = 4.2 if len(p) <= 500 else 3.2
    dots = "".join(
        f'<circle class="{style}" data-i="{i}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"/>'
        for i, ((x, y), style) in enumerate(zip(p.tolist(), styles, strict=True))
    )
    return _svg(frame, name, f'<g class="map">{dots}</g>')
