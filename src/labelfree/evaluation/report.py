"""`report.html`: one page that holds all that is known of a run, needs no network, and can be mailed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree.evaluation.page import page, together
from labelfree.evaluation.plots import Line, chart, scatter
from labelfree.evaluation.projection import project
from labelfree.evaluation.verdict import NAMES, SHOWN, between
from labelfree.files import read_json, read_json_lines, write_bytes
from labelfree.training.logs import duration

if TYPE_CHECKING:
    from labelfree.run import Run

#: What a curve or a row of the table is; see `_kind`.
METHODS = {
    "pretrained": "pretrained, without labels",
    "scratch": "same network from scratch",
    "random": "random frozen encoder",
    "raw": "raw features, logistic regression",
    "boosting": "raw features, gradient boosting",
}
TITLES = {
    "linear": ("Linear probe", "the encoder frozen, a linear classifier on top"),
    "knn": ("Nearest neighbours", "the encoder frozen, nothing trained"),
    "boosting": ("Gradient boosting", "trees, no encoder"),
    "finetune": ("Fine-tuning", "all layers trained"),
}
HEALTH = {
    "loss": ("Loss", "what is minimised"),
    "effective_rank": ("Effective rank", "how many directions the features use; 1 is collapse"),
    "feature_std": ("Spread of features", "1 is even over the sphere, 0 is collapse"),
    "learning_rate": ("Learning rate", ""),
}
#: Unreadable samples that are listed, and characters of a setting's value that are shown.
LISTED, LONG = 50, 200


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's folder, with the newest evaluation if there is one; returns its path."""
    paths = sorted((run.path / "evaluation").glob("*.json"))
    newest, gallery = (read_json(paths[-1]), _gallery(paths[-1])) if paths else (None, None)
    sections = [
        _header(run, newest),
        _results(newest) if newest else "",
        _earlier(paths[:-1]),
        _training(run),
        _given_back(run),
        _map(gallery) if gallery else "",
        _neighbours(gallery) if gallery else "",
        _about(run, newest),
    ]
    content = page(run.path.name, "".join(sections), gallery)
    path = run.path / "report.html"
    write_bytes(path, content.encode(errors="backslashreplace"))
    return path


def _gallery(evaluation: Path) -> dict[str, Any] | None:
    """The map and the neighbours of an evaluation; None where it was stopped before it had them."""
    path = evaluation.parent / "gallery" / evaluation.name
    return read_json(path) if path.exists() else None


# ---- head


def _header(run: Run, evaluation: Mapping[str, Any] | None) -> str:
    info = run.info
    if evaluation:
        first, _, rest = evaluation["verdict"].partition(". ")
        heading, lede = first.rstrip(".") + ".", rest
    else:
        heading = f"{info.get('encoder', 'An encoder')}, pretrained with {info.get('method', 'a method')}."
        lede = "What it is worth is not known yet: evaluate it with labels, labelfree evaluate."
    facts = {
        "data": f"{info.get('found', {}).get('count', 0):,} × {info.get('modality', '')}",
        "method": info.get("method", ""),
        "encoder": info.get("encoder", ""),
        "steps": f"{info.get('step', 0):,}",
        "pretraining": duration(info.get("seconds", 0.0)),
        "state": info.get("state", ""),
    }
    cells = "".join(
        f'<div><div class="name">{name}</div><div class="value">{escape(str(value))}</div></div>'
        for name, value in facts.items()
        if value
    )
    return (
        f'<header><p class="kicker">Labelfree report · {escape(run.path.name)}</p><h1>{escape(heading)}</h1>'
        f'<p class="lede">{escape(lede)}</p></header><div class="facts">{cells}</div>'
    )


# ---- results


def _results(evaluation: Mapping[str, Any]) -> str:
    about, metric = evaluation["about"], NAMES[evaluation["metric"]]
    rows = evaluation["results"]
    seeds = "one seed" if about["seeds"] == 1 else f"mean over {about['seeds']} seeds"
    words = (
        f"{metric[0].upper()}{metric[1:]} on {about['test']:,} test samples of {len(about['classes'])} classes of "
        f"“{about['label']}”, {seeds}. Intervals are {about['interval']}."
    )
    drawn = _legend(rows) + _curves(rows) if rows else "<p>Nothing was measured.</p>"
    return (
        f"<section><h2>What it was worth</h2><p>{escape(words)}</p>{_notes(evaluation)}{drawn}"
        f"</section>{_saving(evaluation)}{_table(rows) if rows else ''}"
    )


def _earlier(paths: Sequence[Path]) -> str:
    """The verdicts of evaluations before the newest, the last of them first."""
    if not paths:
        return ""
    rows = []
    for path in reversed(paths):
        found = read_json(path)
        rows.append((path.name, f"“{found['about']['label']}”: {found['verdict'].partition('. ')[0]}"))
    return f"<section>{_details(f'Earlier evaluations ({len(paths)})', rows)}</section>"


def _kind(row: Mapping[str, Any]) -> str:
    """The method of a result; raw features under their second classical model are a kind of their own."""
    return "boosting" if row["protocol"] == "boosting" else row["method"]


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    there = {_kind(row) for row in rows}
    items = "".join(
        f'<li class="{method}"><i></i><span>{words}</span></li>' for method, words in METHODS.items() if method in there
    )
    return f'<ul class="legend">{items}</ul>'


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Score over labels for each protocol, on the same axes; raw features stand beside every protocol."""
    everything = [row[key] for row in rows for key in ("low", "high")]
    low, high = min(everything), max(everything)
    span = (max(0.0, low - 0.04), min(1.0, high + 0.04))
    budgets: dict[int, dict[str, None]] = {}
    for row in sorted(rows, key=lambda row: row["labels"]):
        budgets.setdefault(row["labels"], {})[row["budget"]] = None
    marks = [(labels, f"{labels:,}\n{', '.join(names)}") for labels, names in budgets.items()]
    cards = []
    for protocol in ("linear", "finetune", "knn"):
        shown = [row for row in rows if row["protocol"] == protocol]
        if not shown:
            continue
        beside = ("boosting",) if protocol == "linear" else ("raw", "boosting")
        shown += [row for row in rows if _kind(row) in beside]
        lines = []
        for method in reversed(METHODS):
            points = sorted((row for row in shown if _kind(row) == method), key=lambda row: row["labels"])
            columns = [[row[key] for row in points] for key in ("labels", "score", "low", "high")]
            lines.append(Line(method, METHODS[method], *columns))
        title, words = TITLES[protocol]
        drawn = chart(lines, f"{title}: score by labels", marks, log=True, percent=True, span=span, dots=True)
        cards.append(f'<div class="card"><h3>{title} <small>{words}</small></h3>{drawn}</div>')
    return f'<div class="grid-of">{"".join(cards)}</div>'


def _saving(evaluation: Mapping[str, Any]) -> str:
    """A row a budget: how many labels the baselines need for the pretrained encoder's score."""
    rows = []
    for budget, entry in evaluation["label_saving"].items():
        cells = "".join(f'<td class="number">{_need(entry.get(method))}</td>' for method in ("scratch", "raw"))
        score = f"{entry['score']:.1%} <small>{TITLES[entry['protocol']][0].lower()}</small>"
        rows.append(
            f'<tr><td>{entry["labels"]:,} <small>{budget}</small></td><td class="number">{score}</td>{cells}</tr>'
        )
    if not rows:
        return ""
    return (
        "<section><h2>Label saving</h2><p>How many labels the others need for the score that the pretrained encoder "
        "has, read off their learning curves, with 95% intervals.</p><div class='scroll'><table><tr><th>labels</th>"
        "<th class='number'>pretrained reaches</th><th class='number'>from scratch needs</th>"
        f"<th class='number'>raw features need</th></tr>{''.join(rows)}</table></div></section>"
    )


def _need(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<small>not measured</small>"
    if entry["relation"] == "not known":
        return "<small>not known: the time limit cut it short</small>"
    if entry["relation"] == "more than":
        return f"more than {entry['labels']:,}"
    words = f"{'at most ' if entry['relation'] == 'at most' else ''}{entry['labels']:,}"
    return f"{words} <small>× {entry['factor']:g}</small><br><small>{between(entry)}</small>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    budgets = {row["budget"]: row["labels"] for row in sorted(rows, key=lambda row: row["labels"])}
    found = {(row["protocol"], _kind(row), row["budget"]): row for row in rows}
    head = "".join(
        f'<th class="number">{labels:,} labels <small>{name}</small></th>' for name, labels in budgets.items()
    )
    body = []
    for protocol in SHOWN[::-1]:
        methods = [m for m in METHODS if any((protocol, m, b) in found for b in budgets)]
        if methods:
            body.append(f'<tr class="group"><td colspan="{1 + len(budgets)}">{TITLES[protocol][0]}</td></tr>')
        for method in methods:
            cells = "".join(_cell(found.get((protocol, method, budget))) for budget in budgets)
            ours = ' class="ours"' if method == "pretrained" else ""
            body.append(f'<tr{ours}><td><i class="swatch {method}"></i>{METHODS[method]}</td>{cells}</tr>')
    return (
        f"<section><h2>All scores</h2><div class='scroll'><table><tr><th></th>{head}</tr>{''.join(body)}</table></div>"
        "</section>"
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return '<td class="number">–</td>'
    between = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
    return f'<td class="number">{row["score"]:.1%}<br><small>{between}</small></td>'


def _notes(evaluation: Mapping[str, Any]) -> str:
    words = [*evaluation["warnings"], *(f"Left out: {item}" for item in evaluation["left_out"])]
    if not words:
        return ""
    return f'<div class="notes"><ul>{_items(words)}</ul></div>'


def _items(words: Iterable[str]) -> str:
    return "".join(f"<li>{escape(word)}</li>" for word in words)


# ---- training


def _training(run: Run) -> str:
    logged = run.metrics()
    if not logged:
        return ""
    cards = []
    for key, (title, words) in HEALTH.items():
        x = [line["step"] for line in logged if line.get(key) is not None]
        y = [line[key] for line in logged if line.get(key) is not None]
        lines = [Line("plain", title, x, y)]
        if len(y) > 20 and min(y) < max(y):
            lines = [Line("plain faint", title, x, y), Line("plain", title, x, _smooth(y))]
        drawn = chart(lines, f"{title} by step", size=(480.0, 190.0))
        about = f" <small>{words}</small>" if words else ""
        cards.append(f'<div class="card"><h3>{title}{about}</h3>{drawn}</div>' if drawn else "")
    warnings = run.info.get("warnings") or []
    notes = f'<div class="notes"><ul>{_items(warnings)}</ul></div>' if warnings else ""
    return (
        f"<section><h2>Training</h2><p>By step; no label was seen.</p>{notes}"
        f'<div class="grid-of wide">{"".join(cards)}</div></section>'
    )


def _given_back(run: Run) -> str:
    """Samples beside what the method made of them, samples that it made anew, and how it goes on with beginnings."""
    path = run.path / "reconstructions.json"
    if not path.exists():
        return ""
    found, sections = read_json(path), []
    if found["samples"]:
        titles = {"sample": "the sample", "seen": "what was seen", "given_back": "given back"}
        words = "A few samples of the training data, and what the method makes of them."
        sections.append(f"<h2>Given back</h2><p>{words}</p>{_side_by_side(found['samples'], titles)}")
    if found["imagined"]:
        made = "".join(f'<figure><div class="shown">{html}</div></figure>' for html in found["imagined"])
        words = "Samples that never were: normally distributed codes, decoded."
        sections.append(f'<h2>Made anew</h2><p>{words}</p><div class="card made">{made}</div>')
    if found.get("continued"):
        titles = {"sample": "the sample", "beginning": "its beginning", "continued": "as the model goes on"}
        words = "A few samples of the training data, and how the model goes on from their beginnings."
        sections.append(f"<h2>Continued</h2><p>{words}</p>{_side_by_side(found['continued'], titles)}")
    return "".join(f"<section>{section}</section>" for section in sections)


def _side_by_side(rows: Sequence[Mapping[str, str]], titles: Mapping[str, str]) -> str:
    """A card a row, with those of its pictures that are there."""
    cards = []
    for row in rows:
        figures = [
            f'<figure><div class="shown">{row[key]}</div><figcaption>{words}</figcaption></figure>'
            for key, words in titles.items()
            if row[key]
        ]
        cards.append(f'<div class="card made">{"".join(figures)}</div>')
    kind = "given seen" if any(all(row[key] for key in titles) for row in rows) else "given"
    return f"<div class='grid-of {kind}'>{''.join(cards)}</div>"


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a twentieth of the points."""
    x = np.asarray(values, dtype=float)
    half = max(1, len(x) // 40)
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(x))])
    count = np.concatenate([[0.0], np.cumsum(np.isfinite(x))])
    low, high = (np.arange(len(x)) - half).clip(0), (np.arange(len(x)) + half + 1).clip(max=len(x))
    return ((total[high] - total[low]) / np.maximum(count[high] - count[low], 1)).tolist()


# ---- features


def _map(gallery: Mapping[str, Any]) -> str:
    drawn, classes = gallery["map"], gallery["classes"]
    styles = [f"k{y % 12}" for y in drawn["y"]]
    swatches = "".join(f".k{i}{{color:var(--k{i})}}" for i in range(12))
    points, way = project(np.array(drawn["components"]))
    svg = scatter(points, styles, "Map of the features of test samples")
    names = "".join(
        f'<li class="k{i % 12}"><button data-class="{i}"><i></i><span>{escape(str(name))}</span></button></li>'
        for i, name in enumerate(classes[:24])
    )
    more = f"<li>and {len(classes) - 24} more</li>" if len(classes) > 24 else ""
    words = (
        f"Features of {len(drawn['y']):,} test samples, drawn by {way}; the labels only colour it. "
        "Point at a sample to see it; choose a class to see it alone."
    )
    return (
        f"<style>{swatches}</style><section><h2>Map of the features</h2><p>{words}</p>"
        f'<ul class="legend">{names}{more}</ul><div class="card mapped">{svg}<div id="tip"></div></div></section>'
    )


def _neighbours(gallery: Mapping[str, Any]) -> str:
    classes, shown = gallery["classes"], []
    for asked in gallery["neighbours"]:
        entries = [asked, *asked["near"]]
        words = [f"<b>{escape(str(classes[asked['y']]))}</b>"]
        for near in asked["near"]:
            kind, sign = ("same", "✓") if near["y"] == asked["y"] else ("other", "✗")
            label = f"{escape(str(classes[near['y']]))} <span class='{kind}'>{sign}</span>"
            words.append(f"{label} <small>{near['similarity']:.2f}</small>")
        names, html, cells = ([entry.get(key, {}) for entry in entries] for key in ("name", "html", "row"))
        shown.append(together(names, html, words, cells))
    marked = " What differs from the first is underlined." if any(e.get("row") for e in gallery["neighbours"]) else ""
    return (
        "<section><h2>Nearest neighbours</h2><p>A test sample, and the training samples that the encoder finds most "
        f"like it, with their cosine similarity.{marked}</p>{''.join(shown)}</section>"
    )


# ---- the record


def _about(run: Run, evaluation: Mapping[str, Any] | None) -> str:
    info = run.info
    choices = [(c["key"], c["value"], c["reason"]) for c in info.get("choices", ())]
    parts = [_details("Choices, with their reasons", choices, opened=True)]
    for owner, settings in info.get("settings", {}).items():
        parts.append(_details(f"Settings · {owner}", settings.items()))
    found = info.get("found", {})
    source = [("source", info.get("source") or "in memory"), ("fingerprint", info.get("fingerprint", ""))]
    parts.append(_details("Data", [*source, *found.get("facts", {}).items()]))
    parts.append(
        _details("Versions and hardware", [*info.get("versions", {}).items(), *info.get("hardware", {}).items()])
    )
    if evaluation:
        hidden = ("classes", "versions", "hardware", "finetune")
        about = {key: value for key, value in evaluation["about"].items() if key not in hidden}
        parts.append(_details("Evaluation", [*about.items(), *evaluation["about"]["finetune"].items()]))
    parts.append(_unreadable(run))
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return f"<section><h2>The record</h2>{''.join(parts)}</section><footer>Written {now} by Labelfree.</footer>"


def _details(title: str, rows: Iterable[Sequence[Any]], opened: bool = False) -> str:
    lines = [f"<tr>{''.join(f'<td>{escape(_brief(cell))}</td>' for cell in row)}</tr>" for row in rows]
    if not lines:
        return ""
    state = " open" if opened else ""
    table = f"<div class='scroll'><table>{''.join(lines)}</table></div>"
    return f"<details{state}><summary>{escape(title)}</summary>{table}</details>"


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    words = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return words if len(words) <= LONG else words[: LONG - 1] + "…"


def _unreadable(run: Run) -> str:
    bad = read_json_lines(run.path / "quarantine.jsonl")
    more = [(f"and {len(bad) - LISTED:,} more", "see quarantine.jsonl")] if len(bad) > LISTED else []
    return _details(f"Unreadable samples · {len(bad):,}", [*((b["name"], b["reason"]) for b in bad[:LISTED]), *more])
