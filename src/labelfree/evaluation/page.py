"""A page in one file that needs no network, and samples side by side on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

#: Columns of a table that are shown.
COLUMNS = 20


def page(title: str, body: str, gallery: Mapping[str, Any] | None = None) -> str:
    """A whole page around `body`; the gallery's map is drawn by a script."""
    script = ""
    if gallery:
        data = {"classes": gallery["classes"], **{key: gallery["map"][key] for key in ("y", "names", "html")}}
        safe = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        script = f'<script id="map-data" type="application/json">{safe}</script><script>{_file("report.js")}</script>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · Labelfree report</title><style>{_file('report.css')}</style></head>"
        f"<body><main>{body}</main>{script}</body></html>"
    )


def _file(name: str) -> str:
    return resources.files("labelfree.evaluation").joinpath(name).read_text(encoding="utf-8")


def together(
    names: Sequence[str],
    html: Sequence[str],
    words: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    compared: bool = True,
) -> str:
    """Samples side by side, each with its words (HTML).

    Rows of a table are one below the other, their columns' names above; `compared` marks what differs from the first.
    """
    if all(rows):
        return _as_table(names, words, rows, compared)
    figures = "".join(
        f'<figure title="{escape(str(name))}"><div class="shown">{shown}</div><figcaption>{said}</figcaption></figure>'
        for name, shown, said in zip(names, html, words, strict=True)
    )
    return f'<div class="near">{figures}</div>'


def _as_table(names: Sequence[str], words: Sequence[str], rows: Sequence[Mapping[str, str]], compared: bool) -> str:
    columns = list(rows[0])[:COLUMNS]
    left_out = len(rows[0]) - len(columns)
    header = "".join(f"<th>{escape(column)}</th>" for column in columns)
    header += f"<th>… {left_out:,} more</th>" if left_out else ""
    lines = []
    for name, said, row in zip(names, words, rows, strict=True):
        differs = [" class='differs'" if compared and row[c] != rows[0][c] else "" for c in columns]
        cells = "".join(f"<td{mark}>{escape(row[c])}</td>" for mark, c in zip(differs, columns, strict=True))
        lines.append(f'<tr title="{escape(str(name))}"><td>{said}</td>{cells}{"<td></td>" if left_out else ""}</tr>')
    kind = "rows compared" if compared else "rows"
    return f"<div class='scroll'><table class='{kind}'><tr><th></th>{header}</tr>{''.join(lines)}</table></div>"
