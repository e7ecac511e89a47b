"""Draws docs/samples.svg, the figure of docs/generate.md, from a run of `vae` on pictures.

python docs/make_samples.py runs/digits
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("samples.svg")
#: Side of a picture, and its place in a row, in pixels.
SIDE, STEP, LEFT, TOP = 44, 50, 120, 12
ACROSS = 10


def picture(found: dict[str, list[dict[str, str]] | list[str]]) -> str:
    """The figure as SVG: samples, what was given back of each, and new ones."""
    samples: list[dict[str, str]] = found["samples"][:ACROSS]  # type: ignore[assignment]
    imagined: list[str] = found["imagined"]  # type: ignore[assignment]
    rows = [
        ("samples", [row["sample"] for row in samples]),
        ("given back", [row["given_back"] for row in samples]),
        ("made anew", imagined[:ACROSS]),
        ("", imagined[ACROSS : 2 * ACROSS]),
    ]
    width, height = LEFT + ACROSS * STEP, TOP + len(rows) * STEP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ]
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, (words, shown) in enumerate(rows):
        y = TOP + number * STEP
        style = 'font-family="sans-serif" font-size="13" fill="#333"'
        parts.append(f'<text x="8" y="{y + SIDE / 2 + 4:.0f}" {style}>{words}</text>')
        for place, html in enumerate(shown):
            data = re.search(r'src="(data:[^"]+)"', html)
            assert data is not None, "the run's samples are no pictures"
            x = LEFT + place * STEP
            parts.append(f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="{data[1]}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(picture(json.loads((Path(sys.argv[1]) / "reconstructions.json").read_text(encoding="utf-8"))))
    print(f"'{TARGET}' is written.")
