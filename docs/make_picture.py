"""Draws docs/digits.svg, the README's figure, from what `labelfree demo` measured.

labelfree demo --out labelfree-demo
python docs/make_picture.py labelfree-demo/run/evaluation/001-digit.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("digits.svg")
WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 250, 40, 52

#: (method, protocol) → words and colour; the protocols are those that suit each method best.
LINES = {
    ("pretrained", "linear"): ("pretrained without labels", "#1b7f5c"),
    ("raw", "linear"): ("raw pixels, logistic regression", "#8a6d3b"),
    ("random", "linear"): ("same network, random", "#8c8c8c"),
    ("scratch", "finetune"): ("same network, from scratch", "#b04a3a"),
}


def picture(found: dict[str, Any]) -> str:
    """The figure as SVG: score against labels (logarithmic), with 95 % intervals."""
    rows = [r for r in found["results"] if (r["method"], r["protocol"]) in LINES]
    counts = sorted({r["labels"] for r in rows})
    bottom = math.floor(min(r["low"] for r in rows) * 10) / 10

    def x(labels: int) -> float:
        share = math.log(labels / counts[0]) / math.log(counts[-1] / counts[0])
        return LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48)

    def y(score: float) -> float:
        return TOP + (1 - score) / (1 - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [
        text(LEFT, 22, "Handwritten digits: accuracy on held-out pictures", weight="bold", size=15),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "labelled pictures", anchor="middle"),
    ]
    for tenth in range(round(bottom * 10), 11):
        parts.append(line(LEFT, y(tenth / 10), WIDTH - RIGHT, y(tenth / 10), "#e4e4e4"))
        parts.append(text(LEFT - 8, y(tenth / 10) + 4, f"{tenth * 10} %", anchor="end"))
    parts += [text(x(count), HEIGHT - BOTTOM + 20, f"{count}", anchor="middle") for count in counts]
    ends = []
    for (method, protocol), (words, colour) in LINES.items():
        own = sorted((r for r in rows if (r["method"], r["protocol"]) == (method, protocol)), key=lambda r: r["labels"])
        if not own:
            continue
        points = " ".join(f"{x(r['labels']):.1f},{y(r['score']):.1f}" for r in own)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for r in own:
            low, high = max(r["low"], bottom), min(r["high"], 1.0)
            parts.append(line(x(r["labels"]), y(low), x(r["labels"]), y(high), colour))
            parts.append(f'<circle cx="{x(r["labels"]):.1f}" cy="{y(r["score"]):.1f}" r="4" fill="{colour}"/>')
        ends.append([y(own[-1]["score"]), words, colour, own[-1]["score"]])
    ends.sort()
    for number, (place, words, colour, score) in enumerate(ends):
        if number:
            place = max(place, ends[number - 1][0] + 20)
        ends[number][0] = place
        parts.append(text(WIDTH - RIGHT + 10, place + 4, f"{words} {score:.1%}", colour=colour))
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def text(
    x: float, y: float, words: str, *, anchor: str = "start", weight: str = "", size: int = 13, colour: str = "#333"
) -> str:
    style = f'font-family="sans-serif" font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}{f" font-weight={weight!r}" if weight else ""}>{words}</text>'


def line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"/>'


if __name__ == "__main__":
    TARGET.write_text(picture(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"'{TARGET}' is written.")
