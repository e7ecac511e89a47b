"""The doctor's page: findings with examples as people look at them, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from labelfree.data.batch import Sample
from labelfree.data.doctor import Finding
from labelfree.evaluation.page import page, together
from labelfree.training.logs import counted

if TYPE_CHECKING:
    from labelfree.tasks.doctor import Checkup

#: Examples of a finding, samples of a group, and rows of a list that are shown.
EXAMPLES, TOGETHER, LISTED = 12, 6, 50
#: Columns of tables that hold numbers.
NUMBERS = frozenset({"samples", "share", "missing"})


def page_of(checkup: Checkup) -> str:
    """The whole page."""
    sections = [_head(checkup), _overview(checkup), *(_examples(checkup, finding) for finding in checkup.findings)]
    return page(checkup.source, "".join(sections))


def _head(checkup: Checkup) -> str:
    facts = {"samples": f"{checkup.count:,}", "looked at": f"{checkup.looked:,}", **checkup.facts}
    cells = "".join(
        f'<div><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div></div>'
        for name, value in facts.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in checkup.notes)
    return (
        f'<header><p class="kicker">Labelfree doctor · {escape(checkup.source)}</p><h1>{escape(checkup.verdict)}</h1>'
        f'<p class="lede">{escape(checkup.modality.capitalize())} data.</p></header><div class="facts">{cells}</div>'
        + (f'<div class="notes"><ul>{notes}</ul></div>' if notes else "")
    )


def _overview(checkup: Checkup) -> str:
    rows = "".join(
        f'<tr><td>{escape(check)}</td><td class="number">{count}</td><td class="number">{share}</td>'
        f"<td><small>{escape(names)}</small></td></tr>"
        for check, count, share, names in checkup.rows()
    )
    found = _table(("check", "samples", "share", "for instance"), rows) if rows else ""
    classes = "".join(_pair(name, f"{count:,}") for name, count in checkup.labels.items())
    missing = "".join(
        _pair(name, f"{share:.1%}") for name, share in sorted(checkup.missing.items(), key=lambda item: -item[1])
    )
    return (
        (f"<section><h2>What was found</h2>{found}</section>" if found else "")
        + (f"<section><h2>Labels</h2>{_table(('class', 'samples'), classes)}</section>" if classes else "")
        + (f"<section><h2>Missing values</h2>{_table(('values', 'missing'), missing)}</section>" if missing else "")
    )


def _table(header: Sequence[str], rows: str) -> str:
    head = "".join(f'<th class="number">{name}</th>' if name in NUMBERS else f"<th>{name}</th>" for name in header)
    return f"<div class='scroll'><table><tr>{head}</tr>{rows}</table></div>"


def _pair(name: str, value: str) -> str:
    return f'<tr><td>{escape(name)}</td><td class="number">{value}</td></tr>'


def _examples(checkup: Checkup, finding: Finding) -> str:
    count = counted(len(finding.samples), "sample")
    title = f"<h2>{escape(finding.check.capitalize())}</h2><p>{count} {escape(finding.words)}.</p>"
    if finding.check == "unreadable":
        rows = "".join(
            f"<tr><td>{escape(checkup.dataset.name(row))}</td><td>{escape(finding.reasons[row])}</td></tr>"
            for row in finding.samples[:LISTED]
        )
        return f"<section>{title}{_table(('sample', 'reason'), rows)}</section>"
    if finding.groups:
        shown = "".join(_figures(checkup, finding, group[:TOGETHER]) for group in finding.groups[:EXAMPLES])
    else:
        some = finding.samples[:EXAMPLES]
        shown = "".join(_figures(checkup, finding, some[start : start + 7]) for start in range(0, len(some), 7))
    return f"<section>{title}{shown}</section>"


def _figures(checkup: Checkup, finding: Finding, rows: Sequence[int]) -> str:
    items = [item if isinstance(item, Sample) else None for item in checkup.dataset.shown(list(rows))]
    names = [checkup.dataset.name(row) for row in rows]
    reasons = [f"<br><small>{escape(finding.reasons[row])}</small>" if row in finding.reasons else "" for row in rows]
    return together(
        names,
        ["" if item is None else checkup.kind.show(item) for item in items],
        [escape(name) + reason for name, reason in zip(names, reasons, strict=True)],
        [{} if item is None else checkup.kind.row(item) for item in items],
        compared=bool(finding.groups),
    )
