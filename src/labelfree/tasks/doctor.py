"""The doctor: what is wrong with a source, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelfree import registry
from labelfree.data.dataset import Dataset
from labelfree.data.doctor import Finding, Survey, nearby
from labelfree.data.spread import spread
from labelfree.errors import LabelfreeError, SeenByEncoder
from labelfree.files import without_secrets, writable, write_json
from labelfree.modalities.base import Modality
from labelfree.run import Run
from labelfree.settings import share_out
from labelfree.tasks.labels import Labels, Subset, read_labels
from labelfree.tasks.near import comparable, near_groups, near_pairs, usual_distance
from labelfree.training.logs import counted
from labelfree.training.plan import recognise

#: Samples that are compared with each other.
MOST_COMPARED = 20_000
#: Raw features fewer than which samples that are no copies are near each other by chance.
FEW_FEATURES = 10
#: Neighbours by whose distance a sample is an outlier, and deviations (robust) beyond which it is one.
NEIGHBOURS, OUTLYING = 5, 6.0
#: Samples of a finding that are named.
NAMED = 5


@dataclass
class Checkup:
    """What the doctor found.

    Attributes:
        source: as it was given.
        modality: its kind of data.
        count, looked: samples of the source, and how many of them were looked at.
        findings: faults, the gravest first, and what only may be one (`Finding.fault`).
        facts: what is no fault: what the source holds, labels, missing values.
        missing: share of the values that is missing, by column or channel; those without any left out.
        labels: samples of each class, where labels were given.
        notes: what was not looked for, and why.
        threshold: share of faulty samples above which the source has failed.
    """

    source: str
    modality: str
    count: int
    looked: int
    findings: list[Finding]
    facts: dict[str, str]
    missing: dict[str, float]
    labels: dict[str, int]
    notes: list[str]
    threshold: float
    dataset: Dataset = field(repr=False)
    kind: Modality = field(repr=False)

    @property
    def faults(self) -> list[Finding]:
        """The findings that something is wrong with."""
        return [finding for finding in self.findings if finding.fault]

    @property
    def share(self) -> float:
        """Share of the samples looked at that have a fault; what was looked for in some of them counts for all."""
        faulty = {row for finding in self.faults if not finding.compared for row in finding.samples}
        part = {row for finding in self.faults if finding.compared for row in finding.samples} - faulty
        compared = max((finding.compared for finding in self.faults), default=0)
        spoilt = (len(faulty) + (len(part) * self.looked / compared if part else 0)) / max(self.looked, 1)
        left_out = len(self.dataset.unreadable) / max(self.dataset.source_count(), 1)
        return left_out + (1 - left_out) * min(1.0, spoilt)

    def share_of(self, finding: Finding) -> float:
        """Share of the samples looked at for it that have one fault."""
        return len(finding.samples) / max(finding.compared or self.looked, 1)

    @property
    def failed(self) -> bool:
        return self.share > self.threshold

    @property
    def verdict(self) -> str:
        if not self.faults and not self.dataset.unreadable:
            return f"Nothing is wrong with the {counted(self.looked, 'sample')} looked at."
        relation = "more" if self.failed else "no more"
        return (
            f"{self.share:.1%} of the {counted(self.looked, 'sample')} looked at have a fault, "
            f"{relation} than the {self.threshold:.0%} that is allowed."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the keys are documented in docs/json.md."""
        findings = [
            {
                "check": finding.check,
                "words": finding.words,
                "fault": finding.fault,
                "count": len(finding.samples),
                "share": self.share_of(finding),
                "samples": [self._entry(row, finding) for row in finding.samples],
                "groups": [[self.dataset.name(row) for row in group] for group in finding.groups],
            }
            for finding in self.findings
        ]
        left_out = [{"name": item.name, "reason": item.reason} for item in self.dataset.unreadable]
        keys = ("source", "modality", "count", "looked", "facts", "missing", "labels", "notes", "threshold", "verdict")
        own = {key: getattr(self, key) for key in keys}
        return own | {"findings": findings, "left_out": left_out, "share": self.share, "failed": self.failed}

    def _entry(self, row: int, finding: Finding) -> dict[str, Any]:
        reason = {"reason": finding.reasons[row]} if row in finding.reasons else {}
        return {"index": row, "name": self.dataset.name(row), **reason}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Check, samples, share and the first names, for a table."""
        rows = []
        if lost := self.dataset.unreadable:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in lost[:NAMED])
            rows.append(("left out", f"{len(lost):,}", "", reasons))
        for finding in self.findings:
            names = [self.dataset.name(row) for row in finding.samples[:NAMED]]
            if finding.groups:
                names = [" = ".join(self.dataset.name(row) for row in group[:3]) for group in finding.groups[:NAMED]]
            instances = f"{finding.tally}: " * bool(finding.tally) + "; ".join(names)
            rows.append((finding.check, f"{len(finding.samples):,}", f"{self.share_of(finding):.1%}", instances))
        return rows

    def write(self, path: str | Path, force: bool = False) -> None:
        """Write a page (.html) with examples, and all of it as JSON beside it."""
        from labelfree.evaluation.doctor_page import page_of
        from labelfree.files import write_bytes

        page, values = page_files(path, force)
        write_bytes(page, page_of(self).encode(errors="backslashreplace"))
        write_json(values, self.to_dict())


def page_files(path: str | Path, force: bool, source: Any = None) -> tuple[Path, Path]:
    """The page and its JSON beside it. Raises LabelfreeError where one is there and not `force`, or is the source."""
    page = writable(path, force, (".html",))
    beside = writable(page.with_suffix(".json"), force, (".json",))
    if isinstance(source, str | Path) and Path(source).resolve() in (page.resolve(), beside.resolve()):
        raise LabelfreeError(f"'{source}' is the source, and is not replaced.", "Name another page with --out.")
    return page, beside


def doctor(
    source: Any,
    *,
    modality: str | None = None,
    against: Any = None,
    label: str | None = None,
    run: Run | str | Path | None = None,
    limit: int | None = None,
    near: float = 0.15,
    threshold: float = 0.05,
    accelerator: str = "auto",
    **settings: Any,
) -> Checkup:
    """Look for what is wrong with a source.

    Args:
        source: a folder, a file, an array: what `pretrain` takes.
        modality: its kind of data; None to recognise it.
        against: another source, such as the test part, that ought to share no sample with this one.
        label: column of labels; copies with different labels are found.
        run: a run whose encoder's features show outliers.
        limit: look at so many samples, spread over the source; all by default.
        near: distance of raw features, as a share of that usual between neighbours, below which two samples are near
            copies.
        threshold: share of faulty samples above which the source has failed.
        accelerator: where the run's encoder computes, as in pretraining: auto, cpu, cuda or mps.
        **settings: of the modality.

    Raises:
        LabelfreeError: the source cannot be opened, there is no such column, or a share is none.
    """
    if limit is not None and limit < 1:
        raise LabelfreeError(f"limit={limit} looks at nothing.", "Give 1 or more.")
    for name, share in (("near", near), ("threshold", threshold)):
        if not 0 <= share <= 1:
            raise LabelfreeError(f"{name}={share} is no share.", "Give a number from 0 to 1.")
    trained = Run(run) if isinstance(run, str | Path) else run
    kind, dataset, notes = _opened(source, modality, trained, settings, label)
    labels = None if label is None else read_labels(dataset, label, least=1)  # a mistake is told before the survey
    places = range(len(dataset)) if limit is None else spread(len(dataset), dataset.shards, limit)
    whole, _ = dataset.origin()
    survey = Survey(kind.signal, not whole.connected, whole.own_values, kind.length_words).add(nearby(dataset, places))
    findings = survey.findings()
    other = None if against is None else kind.open(against)
    if whole.connected:
        notes.append("Samples are parts of one whole, which may well be alike: no copies were looked for.")
    else:
        findings += _alike(kind, dataset, survey, other, near, notes)
    if labels is not None:
        findings += _disagreeing(labels, findings)
    if trained is not None:
        findings += _outlying(trained, dataset, survey, accelerator)
    return Checkup(
        source=without_secrets(source) if isinstance(source, str | Path) else type(source).__name__,
        modality=kind.name,
        count=len(dataset),
        looked=len(places),
        findings=findings,
        facts=dict(dataset.describe().facts),
        missing=_missing(dataset, survey),
        labels={} if labels is None else _class_counts(labels),
        notes=notes + ([] if labels is None else labels.notes),
        threshold=threshold,
        dataset=dataset,
        kind=kind,
    )


def _opened(
    source: Any, modality: str | None, run: Run | None, settings: Mapping[str, Any], label: str | None
) -> tuple[Modality, Dataset, list[str]]:
    if run is not None:
        if settings or modality is not None:
            raise LabelfreeError("The run says how its data is read.", "Leave out the modality and its settings.")
        return run.modality, run.open(source), []
    name = recognise(source)[0] if modality is None else modality
    cls = registry.find("modality", registry.modalities(), name)
    own = share_out(settings, {cls.name: cls.settings_class})[cls.name]
    kind = cls(cls.settings_class.read(own, cls.name))
    dataset, notes = kind.open(source), []
    if label is not None and _is_feature(dataset, label):
        kind = cls(kind.settings.model_copy(update={"exclude": (*kind.settings.exclude, label)}))
        dataset = kind.open(source)
        notes.append(f"'{label}' is the label, and was left out of the features.")
    try:
        kind.fit(dataset)
    except LabelfreeError as error:  # what cannot be learnt from can still be looked at
        notes.append(f"It could not be learnt from: {error.problem}")
    return kind, dataset, notes


def _is_feature(dataset: Dataset, name: str) -> bool:
    try:
        dataset.column(name)
    except SeenByEncoder:
        return True
    except LabelfreeError:  # whoever reads the labels says what is wrong
        return False
    return False


def _missing(dataset: Dataset, survey: Survey) -> dict[str, float]:
    shares = survey.missing()
    names = dataset.value_names or [f"value {place}" for place in range(len(shares))]
    if len(names) != len(shares):
        names = [f"value {place}" for place in range(len(shares))]
    return {str(name): round(float(share), 6) for name, share in zip(names, shares, strict=True) if share > 0}


def _class_counts(labels: Labels) -> dict[str, int]:
    return dict(zip(labels.classes, labels.counts.tolist(), strict=True))


# ---- copies


def _alike(
    kind: Modality, dataset: Dataset, survey: Survey, other: Dataset | None, near: float, notes: list[str]
) -> list[Finding]:
    """Near copies within the source, and samples that are also in the other source."""
    first = {own: row for row, own in zip(reversed(survey.rows), reversed(survey.digests), strict=True)}
    rows = np.array(sorted(first.values()), dtype=np.int64)
    theirs = Survey(False) if other is None else Survey(False).add(nearby(other, range(len(other))))
    if len(rows) > MOST_COMPARED or len(theirs.rows) > MOST_COMPARED:
        notes.append(f"Near copies were looked for among {MOST_COMPARED:,} samples spread over the source.")
    rows, others = _thinned(rows), _thinned(np.array(theirs.rows, dtype=np.int64))
    features = _features(kind, [Subset(dataset, rows), *([] if other is None else [Subset(other, others)])], notes)
    findings = []
    pairs: list[tuple[int, int]] = []
    if features:
        owners = _owners(dataset, survey, rows)
        if len(np.unique(owners[owners >= 0])) < (owners >= 0).sum():
            cut = dataset.origin()[0].cut_from is not None
            apart = "recordings: pieces of one are" if cut else "groups: what belongs to one (a film, a person) is"
            notes.append(f"Near copies were looked for between {apart} alike.")
        usual = usual_distance(features[0], owners)
        a, b = near_pairs(features[0], features[0], near, usual, owners)
        groups = [rows[group].tolist() for group in near_groups(a, b)]
        words = f"differ by less than {near:.0%} of what neighbours do"
        near_copies = sorted({row for group in groups for row in group})
        compared = len(rows) if len(first) > len(rows) else 0
        findings.append(Finding("near copies", words, near_copies, groups, compared=compared, fault=kind.near_copies))
        if near_copies and not kind.near_copies:
            notes.append(f"Different samples of {kind.name} data may well be near each other: that counts as no fault.")
        for part in features[1:]:
            a, b = near_pairs(features[0], part, near, usual)
            pairs = list(zip(rows[a].tolist(), others[b].tolist(), strict=True))
    if other is not None:
        findings += _shared(survey, theirs, other, pairs, kind.near_copies)
    return [finding for finding in findings if finding.samples]


def _features(kind: Modality, parts: Sequence[Dataset], notes: list[str]) -> list[Any]:
    """Features of each part by which near copies are told; none where they cannot be, with a note."""
    if len(parts[0]) < 2:
        return []
    try:
        features = comparable(kind.copy_features(parts[0], parts[1:]))
    except LabelfreeError as error:
        notes.append(f"Near copies were not looked for: {error.problem}")
        return []
    if (count := features[0].shape[1]) < FEW_FEATURES:
        notes.append(f"Near copies were not looked for: in {count} raw features, samples are near by chance.")
        return []
    return features


def _owners(dataset: Dataset, survey: Survey, rows: np.ndarray) -> np.ndarray:
    """(N,) whose each row is: of the group, or else of what it was cut from; -1 of no one's."""
    known = dict(zip(survey.rows, survey.groups, strict=True))
    owners = np.array([known[row] for row in rows.tolist()], dtype=np.int64)
    source, places = dataset.origin()
    if source.cut_from is None:
        return owners
    recordings = source.cut_from[places[rows]] + 1 + owners.max(initial=0)
    return np.where(owners >= 0, owners, recordings)


def _thinned(rows: np.ndarray) -> np.ndarray:
    return rows[spread(len(rows), (0,), MOST_COMPARED)] if len(rows) > MOST_COMPARED else rows


def _shared(
    survey: Survey, theirs: Survey, other: Dataset, near: Sequence[tuple[int, int]], fault: bool
) -> list[Finding]:
    """Samples that are in the other source; those that nearly are, together with them where that is a `fault` too."""
    known = dict(zip(reversed(theirs.digests), reversed(theirs.rows), strict=True))
    reasons = {row: f"nearly '{other.name(their)}' of the other source" for row, their in reversed(near)}
    exact = {row: known[own] for row, own in zip(survey.rows, survey.digests, strict=True) if own in known}
    reasons |= {row: f"is '{other.name(their)}' of the other source" for row, their in exact.items()}
    nearly = {row: words for row, words in reasons.items() if row not in exact}
    if not fault:
        same = {row: reasons[row] for row in exact}
        return [
            Finding("in both sources", "are in the other source too", sorted(same), reasons=same),
            Finding("near the other", "are nearly in the other source", sorted(nearly), reasons=nearly, fault=False),
        ]
    tally = f"{len(exact):,} exactly, {len(nearly):,} nearly"
    words = "are in the other source too, or nearly"
    return [Finding("in both sources", words, sorted(reasons), reasons=reasons, tally=tally)]


# ---- labels, outliers


def _disagreeing(labels: Labels, findings: Sequence[Finding]) -> list[Finding]:
    """Groups of copies, exact or near where that is a fault, whose labels differ."""
    groups: list[Sequence[int]] = []
    reasons: dict[int, str] = {}
    for group in (group for finding in findings if finding.fault for group in finding.groups):
        own = Counter(labels.classes[labels.y[row]] for row in group if labels.y[row] >= 0)
        if len(own) > 1:
            groups.append(group)
            words = ", ".join(f"'{name}' ({count})" for name, count in own.most_common())
            reasons |= dict.fromkeys(group, f"its copies are labelled {words}")
    words = "are alike, but labelled differently"
    return [Finding("labels disagree", words, sorted(reasons), groups, reasons)] if reasons else []


def _outlying(run: Run, dataset: Dataset, survey: Survey, accelerator: str) -> list[Finding]:
    """Samples whose features lie far from all others', by the distance to a few neighbours (Ramaswamy et al. 2000)."""
    from labelfree.tasks.embed import embed

    rows = _thinned(np.array(survey.rows, dtype=np.int64))
    if len(rows) <= NEIGHBOURS:
        return []
    x = embed(run.encoder, run.modality, dataset, indices=rows, accelerator=accelerator)
    score = outlyingness(x)
    far = {int(rows[i]): f"{score[i]:.0f} deviations from the usual" for i in np.flatnonzero(score > OUTLYING)}
    words = "lie far from all others in the encoder's features"
    compared = len(rows) if len(survey.rows) > len(rows) else 0
    return [Finding("outliers", words, sorted(far), reasons=far, compared=compared)] if far else []


def outlyingness(x: np.ndarray) -> np.ndarray:
    """(N, D) features → (N,) how many deviations the distance to a few neighbours is from the usual; 0 where most have
    the same, so that nothing tells what is far, or where more than so many others are equal.
    """
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    found = np.unique(np.round(x, 5), axis=0, return_index=True, return_inverse=True, return_counts=True)
    first, place, copies = found[1], found[2].ravel(), found[3]
    if len(first) <= NEIGHBOURS:
        return np.zeros(len(x))
    distance = _neighbour_distance(x[first])
    middle = float(np.median(distance))
    deviation = 1.4826 * float(np.median(np.abs(distance - middle)))
    score = (distance - middle) / deviation if deviation > 1e-6 else np.zeros(len(first))
    return np.where(copies > NEIGHBOURS, 0.0, score)[place]


def _neighbour_distance(x: np.ndarray, block: int = 1024) -> np.ndarray:
    """(N, D) unit vectors → (N,) mean distance (1 - cosine) to the nearest others."""
    found = []
    for start in range(0, len(x), block):
        near = x[start : start + block] @ x.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        found.append(1 - np.partition(near, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:].mean(axis=1))
    return np.concatenate(found)


def show(checkup: Checkup, tell: Callable[[str], None]) -> None:
    """Say all that is no table: facts, labels, missing values, notes, verdict."""
    facts = " · ".join(f"{key} {value}" for key, value in checkup.facts.items())
    tell(f"{counted(checkup.count, 'sample')} of {checkup.modality} data: {facts}")
    if checkup.labels:
        tell("labels: " + ", ".join(f"{name} {count:,}" for name, count in checkup.labels.items()))
    if checkup.missing:
        worst = sorted(checkup.missing.items(), key=lambda item: -item[1])[:12]
        tell("missing values: " + ", ".join(f"{name} {share:.1%}" for name, share in worst))
    for note in checkup.notes:
        tell(note)
    tell(checkup.verdict)
