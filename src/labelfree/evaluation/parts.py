"""The labelled parts of an evaluation, and the guards that keep it honest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labelfree.data.batch import Sample
from labelfree.data.cache import Cached, cached
from labelfree.data.dataset import Dataset
from labelfree.data.doctor import digest, nearby
from labelfree.encoders.base import Encoder
from labelfree.encoders.saved import build_from_config
from labelfree.errors import LabelfreeError
from labelfree.evaluation.statistics import FEW_GROUPS
from labelfree.files import is_address, read_json
from labelfree.modalities.base import Modality
from labelfree.tasks.labels import Labels, Part, Subset, check_enough, folds, read_labels
from labelfree.training.logs import counted

if TYPE_CHECKING:
    from labelfree.run import Run

#: Pairs of copies that are named.
NAMED = 5
#: Classes with fewer test samples than this are named: how well each is told is hardly known.
FEWEST = 10


@dataclass(frozen=True)
class Parts:
    """Training and test part, and what is to be said about them.

    Attributes:
        train, test: the parts.
        classes: names of the classes.
        duplicates: "test_in_train" (test samples that are exact copies of training samples), "examples" of them.
        shared_groups: groups that are in both parts.
        warnings: sentences that limit what the scores mean.
        left_out: sentences on what there was no time for.
    """

    train: Part
    test: Part
    classes: tuple[str, ...]
    duplicates: dict[str, Any]
    shared_groups: list[str]
    warnings: list[str]
    left_out: list[str]


def read_parts(
    run: Run, train: Any, test: Any, label: str, group: str | None, seed: int, seconds: float = math.inf
) -> Parts:
    """Open, label and check both parts; without a test source a fifth of the training source is held out,
    the last fifth of events.

    Args:
        seconds: time to look for copies in each source that has to be read for it, being too large for memory.

    Raises:
        LabelfreeError: no such column, too few labels of a class, nothing that can be read.
    """
    dataset = run.open(train)
    labels = read_labels(dataset, label, group)
    check_enough(labels, label, 3 if test is None else 2)
    warnings = list(labels.notes)
    whole, unreadable = _near(run.modality, dataset, labels)
    warnings += [*_unreadable_words("training", unreadable), *_piece_words(whole, labels)]
    left_out: list[str] = []
    marks = _marks(whole, "training", seconds, left_out)
    if test is None:
        strict = not run.modality.shuffled and whole.groups is None
        late = _last(whole) if strict else _fifth(whole, marks, seed)
        early = ~late & ~_overlapping(whole, late)
        if lost := int((~late & ~early).sum()):
            warnings.append(f"{counted(lost, 'training sample')} left out, which overlap with what was held out.")
        part, held, marks, other = whole.only(early), whole.only(late), marks[early], marks[late]
        if strict:
            _check_early(part, labels.classes, label)
        warnings += [_held_words(whole, held, strict, labels.pieces), *_seen(run, train, dataset)]
    else:
        opened = run.open(test)
        found = read_labels(opened, label, group, labels.classes)
        held, unreadable = _near(run.modality, opened, found, split=False)
        warnings += [*found.notes, *_unreadable_words("test", unreadable), *_same_source(run, dataset, test, opened)]
        part, other = whole, _marks(held, "test", seconds, left_out)
    _check_common(part, held, label, group)
    duplicates = _duplicates(part, held, marks, other)
    shared = [] if part.groups is None or held.groups is None else np.intersect1d(part.groups, held.groups).tolist()
    warnings += _guard_words(duplicates, shared, group, part, held, labels.classes)
    warnings += _few_words(held, labels.classes, "recording" if labels.pieces else "group")
    return Parts(part, held, labels.classes, duplicates, shared, warnings, left_out)


def _last(whole: Part) -> np.ndarray:
    """(N,) bool: the last fifth of samples that came one after another."""
    return np.arange(len(whole)) >= len(whole) - max(1, len(whole) // 5)


def _fifth(whole: Part, marks: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: a fifth of the samples, of each class alike; copies, or groups, stay whole."""
    rng = np.random.default_rng(seed)
    if whole.groups is not None or whole.chronological:
        return folds(whole.y, 5, rng, whole.groups, whole.chronological) == 0
    _, first, place = np.unique(marks, return_index=True, return_inverse=True)
    if len(first) < len(marks):  # weighed by how many samples each stands for
        return folds(whole.y, 5, rng, marks) == 0
    return (folds(whole.y[first], 5, rng) == 0)[place]


def _overlapping(whole: Part, late: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a piece shares steps of its recording with one that is held out."""
    source, places = whole.dataset.origin()
    found = np.zeros(len(whole), dtype=bool)
    if source.cut_from is None or source.stretches is None:
        return found
    places = places[whole.rows]
    owner, (begin, end) = source.cut_from[places], source.stretches[places].T
    for recording in np.unique(owner[late]):
        own = np.flatnonzero(owner == recording)
        held = own[late[own]]
        held = held[np.argsort(begin[held], kind="stable")]
        # of the held-out pieces that begin before a piece ends, does the one that ends last end after it begins?
        latest = np.maximum.accumulate(end[held])
        before = np.searchsorted(begin[held], end[own])
        found[own] = (before > 0) & (latest[before - 1] > begin[own])
    return found


def _held_words(whole: Part, held: Part, strict: bool, pieces: bool) -> str:
    """What was held out, for want of a test source."""
    share = len(held) / len(whole)
    what = "the last fifth" if strict else "the last fifth of each class" if whole.chronological else "a fifth"
    if not whole.chronological and abs(share - 0.2) > 0.04:
        what = f"{share:.0%}"
    if whole.groups is not None:
        some, all_of = (len(np.unique(part.groups)) for part in (held, whole))  # type: ignore[arg-type]
        what = f"{share:.0%} ({some:,} of {counted(all_of, 'recording' if pieces else 'group')})"
    return f"There was no test source: {what} of the training source was held out."


def units(test: Part) -> np.ndarray | None:
    """(N,) what the test samples are resampled by: their groups; where samples came one after another, stretches of
    about √N of them, since neighbours in time are alike; None where each stands alone.
    """
    if test.groups is not None or not test.chronological:
        return test.groups
    return np.arange(len(test)) // max(1, round(math.sqrt(len(test))))


def _few_words(test: Part, classes: tuple[str, ...], kind: str) -> list[str]:
    """What is said of test parts that hardly tell about others: of one group, or with few samples of a class."""
    if test.groups is not None and len(np.unique(test.groups)) == 1:
        return [f"The test part is of one {kind}, which says nothing of others: intervals have no bounds."]
    counts = np.bincount(test.y, minlength=len(classes))
    few, what = (counts > 0) & (counts < FEWEST), f"{FEWEST} test samples"
    if test.groups is not None:
        places = np.unique(np.stack([np.unique(test.groups, return_inverse=True)[1], test.y]), axis=1)[1]
        spread = np.bincount(places, minlength=len(classes))
        few |= (spread > 0) & (spread < FEW_GROUPS)
        what += f", or samples of fewer than {FEW_GROUPS} {kind}s"
    if not few.any():
        return []
    named = [f"'{classes[c]}' ({counts[c]})" for c in np.argsort(counts, kind="stable") if few[c]]
    names = ", ".join(named[:3]) + (f" and {len(named) - 3:,} more" if len(named) > 3 else "")
    return [f"Classes with fewer than {what}: {names}. How well each of them is told is hardly known."]


def _check_early(train: Part, classes: tuple[str, ...], label: str) -> None:
    """Raises LabelfreeError where the samples before the last fifth lack a class."""
    counts = np.bincount(train.y, minlength=len(classes))
    if (rare := np.flatnonzero(counts < 2)).size:
        raise LabelfreeError(
            f"The last fifth of the source is held out, and before it '{classes[rare[0]]}' of '{label}' comes "
            f"{counts[rare[0]]} times: expected 2 at least.",
            "Give a test source, or empty the label of these samples so that they are left out.",
        )


def _check_common(train: Part, test: Part, label: str, group: str | None) -> None:
    """Raises LabelfreeError where no class is in both parts: then nothing that is learnt can be tested."""
    if len(test) and not np.intersect1d(train.y, test.y).size:
        why = f": each lies within one '{group}'" if group else ""
        raise LabelfreeError(
            f"No class of '{label}' is in the training and in the test part{why}.",
            "Name another --label, or leave out --group." if group else "Give another test source.",
        )


def _near(modality: Modality, dataset: Dataset, labels: Labels, split: bool = True) -> tuple[Part, int]:
    """The labelled samples, in memory if they fit, and how many of them could not be read (as far as is known).

    Those that nothing will `split` keep their groups, also where these could not be split.
    """
    rows = np.flatnonzero(labels.y >= 0)
    groups, by_time = labels.groups_of(rows)
    if not split and labels.groups is not None:
        groups = labels.groups[rows]
    held = cached(Subset(dataset, rows), modality)
    whole = Part(dataset, rows, labels.y[rows], groups, chronological=by_time or not modality.shuffled)
    if not isinstance(held, Cached):
        return whole, 0
    return replace(whole.only(held.kept), dataset=held, rows=np.arange(len(held))), len(rows) - len(held)


def _marks(part: Part, name: str, seconds: float, left_out: list[str]) -> np.ndarray:
    """`digests` of a part; what there was no time for is said."""
    marks, looked = digests(part, math.inf if isinstance(part.dataset, Cached) else seconds)
    if looked < len(part):
        left_out.append(
            f"For want of time copies were looked for among the first {looked:,} of {len(part):,} {name} samples only."
        )
    return marks


def digests(part: Part, seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """(N,) equal for samples that are copies, and how many were looked at in the time allowed.

    Those that cannot be read, or were not looked at, have numbers below 0, each its own.
    """
    out, began = -1 - np.arange(len(part)), time.perf_counter()
    for place, item in enumerate(nearby(part.dataset, part.rows.tolist())):
        if time.perf_counter() - began > seconds:
            return out, place
        if isinstance(item, Sample):
            out[place] = int.from_bytes(digest(item)[:7])
    return out, len(part)


def _duplicates(train: Part, test: Part, of_train: np.ndarray, of_test: np.ndarray) -> dict[str, Any]:
    first = {mark: place for place, mark in reversed(list(enumerate(of_train.tolist()))) if mark >= 0}
    copies = np.array([place for place, mark in enumerate(of_test.tolist()) if mark in first], dtype=np.int64)
    originals = np.array([first[mark] for mark in of_test[copies].tolist()], dtype=np.int64)
    pairs = zip(test.names(copies[:NAMED]), train.names(originals[:NAMED]), strict=True)
    return {
        "test_in_train": len(copies),
        "share": len(copies) / max(1, len(test)),
        "other_label": int((test.y[copies] != train.y[originals]).sum()),
        "examples": [{"test": a, "train": b} for a, b in pairs],
    }


def _unreadable_words(part: str, count: int) -> list[str]:
    return [f"{counted(count, f'{part} sample')} left out, not readable."] if count else []


def _piece_words(whole: Part, labels: Labels) -> list[str]:
    """What is done about pieces of recordings, which are alike."""
    if not labels.pieces:
        return []
    if whole.groups is not None:
        count = len(np.unique(whole.groups))
        return [f"Samples are pieces of {counted(count, 'recording')}, each of which stays on one side of every split."]
    return [
        "Samples are pieces of recordings, and all of some class are of one: time splits them, and scores on other "
        "recordings may be lower."
    ]


def _same_source(run: Run, train: Dataset, test: Any, opened: Dataset) -> list[str]:
    if train.fingerprint() == opened.fingerprint():
        return ["The test source is the training source: the scores say nothing about new data."]
    if _pretrained_on(run, test, opened):
        return ["The encoder was pretrained on the test source (without its labels)."]
    return []


def _seen(run: Run, train: Any, opened: Dataset) -> list[str]:
    """A word where the encoder knows what was held out: no label is given away, but new samples may be harder."""
    if not _pretrained_on(run, train, opened):
        return []
    return ["The encoder was pretrained on the held-out samples too (without labels): scores on new ones may be lower."]


def _pretrained_on(run: Run, source: Any, opened: Dataset) -> bool:
    """Whether the run, or one whose weights it began with, learnt from a source, from a folder that it lies in, or from
    some of what lies in it.
    """
    return any(_is_of(seen, source, opened.fingerprint()) for seen in (run.info, *run.info.get("before", ())))


def _is_of(seen: Mapping[str, Any], source: Any, fingerprint: str) -> bool:
    # training draws from pieces of some sources, whose fingerprint is another
    if fingerprint in (seen.get("source_fingerprint"), seen.get("fingerprint")):
        return True
    learnt = seen.get("source")
    if learnt is None or not isinstance(source, str | Path) or is_address(source) or is_address(learnt):
        return False
    here, there = (Path(place).expanduser().resolve() for place in (source, learnt))
    return here.is_relative_to(there) or there.is_relative_to(here)


def _guard_words(
    duplicates: dict[str, Any], shared: list[str], group: str | None, train: Part, test: Part, classes: tuple[str, ...]
) -> list[str]:
    words = []
    if copies := duplicates["test_in_train"]:
        example = duplicates["examples"][0]
        words.append(
            f"{copies:,} of {len(test):,} test samples ({duplicates['share']:.1%}) are exact copies of training "
            f"samples, such as '{example['test']}' of the test part and '{example['train']}' of the training part: "
            "scores may be too high by as much."
        )
    if shared:
        words.append(
            f"{len(shared):,} values of '{group or 'recording'}' are in the training and in the test part, such as "
            f"'{shared[0]}': scores may be too high for new ones."
        )
    for name, part in (("training", train), ("test", test)):
        if absent := sorted(set(range(len(classes))) - set(part.y.tolist())):
            names = ", ".join(f"'{classes[c]}'" for c in absent[:3])
            words.append(f"{len(absent)} classes have no {name} samples ({names}).")
    if not len(test):
        raise LabelfreeError("The test part has no labelled sample that can be read.", "Check its label column.")
    return words


def fresh_encoder(run: Run, seed: int) -> Encoder:
    """The run's network with new random weights.

    Raises:
        LabelfreeError: it is a network of the user's that cannot be initialised anew.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if run.own_encoder is None:
            return build_from_config(read_json(run.encoder_folder / "config.json"))[1].eval()
        encoder = copy.deepcopy(run.encoder)
        untouched = {id(p) for p in encoder.parameters()}
        for module in encoder.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                untouched -= {id(p) for p in module.parameters(recurse=False)}
        if untouched:
            name = type(getattr(encoder, "network", encoder)).__name__
            raise LabelfreeError(
                f"{name} has {len(untouched)} weights that cannot be initialised anew, "
                "so it cannot be compared with itself from scratch.",
                "Give the modules that own them a method reset_parameters().",
            )
        return encoder.eval()
