"""Whether a source is what it was: for another process of a training, and for a run that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelfree.data.batch import Sample, Unreadable
from labelfree.data.cache import Cached
from labelfree.data.dataset import Dataset
from labelfree.data.sources import hash_of
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError
from labelfree.files import read_json_lines, without_secrets
from labelfree.training.job import Job
from labelfree.training.logs import counted

#: Samples that are read twice to learn whether a source gives the same ones each time.
TWICE = 8


@dataclass(frozen=True)
class Marks:
    """What two processes must agree on to draw the same samples.

    Attributes:
        count: samples to draw from.
        fingerprint: of the source; empty where it gives other samples each time, and has none.
        kept: a hash of which samples could be read.
    """

    count: int
    fingerprint: str
    kept: str


def marks_of(dataset: Dataset, source: Any) -> Marks:
    """The marks of a training set that was made from `source`."""
    fingerprint = "" if changes_by_itself(dataset, source) else dataset.fingerprint()
    return Marks(len(dataset), fingerprint, kept_of(dataset))


def kept_of(dataset: Dataset) -> str:
    """A hash of which samples are drawn from: a file that cannot be read today moves the numbers of all after it."""
    without = sorted((int(item.index), item.name) for item in dataset.unreadable)
    return hash_of(len(dataset), dataset.kept if isinstance(dataset, Cached) else "", *without)


def changes_by_itself(dataset: Dataset, source: Any) -> bool:
    """Whether samples of data in memory are others each time they are read, as those of random transforms are."""
    if isinstance(source, str | Path):
        return False
    opened = dataset.origin()[0]
    some = spaced(len(opened), TWICE).tolist()
    return any(map(_differ, opened.read(some), opened.read(some)))


def _differ(one: Sample | Unreadable, other: Sample | Unreadable) -> bool:
    if not (isinstance(one, Sample) and isinstance(other, Sample)):
        return type(one) is not type(other)
    first, second = one.arrays(), other.arrays()
    return [(a.shape, a.tobytes()) for a in first] != [(b.shape, b.tobytes()) for b in second]


def check_agreed(job: Job, source: Any, agreed: Marks) -> None:
    """Raises LabelfreeError where this process found another source than the first one did."""
    count, fingerprint = len(job.dataset), job.dataset.fingerprint() if agreed.fingerprint else ""
    if Marks(count, fingerprint, kept_of(job.dataset)) != agreed:
        raise LabelfreeError(
            f"One process found {counted(count, 'sample')} in the source {called(source)} and the first one "
            f"{agreed.count:,}, or they are not the same.",
            "All of them must see the same files, which nothing may change meanwhile.",
        )


def check_unchanged(folder: Path, info: Mapping[str, Any], job: Job, source: Any) -> None:
    """Raises LabelfreeError where a run cannot go on exactly, since its source is not what it was.

    Args:
        folder: the run's.
        info: its `run.json`.
        job: as it was put together again.
        source: where its data lies now.
    """
    what, remedy = called(source), f"Start a new run from its weights: --init {folder}."
    if job.dataset.fingerprint() != info["fingerprint"]:
        if changes_by_itself(job.dataset, source):
            raise LabelfreeError(
                f"The source {what} gives other samples each time it is read, so '{folder}' cannot continue exactly.",
                f"{remedy} Without its random transforms, that one could be resumed.",
            )
        raise LabelfreeError(
            f"The source {what} has changed since '{folder}' was started, so it cannot continue exactly.", remedy
        )
    streamed = info["plan"]["training"]["cache"] == "none"
    if streamed != (job.plan.training.cache == "none") or info.get("kept") in (None, kept_of(job.dataset)):
        return  # what is streamed also draws what cannot be read: a cache that was given anew draws others in any case
    names = _not_the_same(folder, job, streamed)
    which = f": '{names[0]}' for one, of {len(names):,}" if names else ""
    raise LabelfreeError(
        f"The source {what} has samples that could be read when '{folder}' was started and cannot be read now, or the "
        f"other way round{which}, so it cannot continue exactly.",
        f"Make them as they were, or start a new run from its weights: --init {folder}.",
    )


def _not_the_same(folder: Path, job: Job, streamed: bool) -> list[str]:
    """Names of samples that can be read now and could not be before, or the other way round, as far as it is known."""
    before = {line["name"] for line in read_json_lines(folder / "quarantine.jsonl")}
    now = {item.name for item in job.dataset.unreadable}
    return sorted(now - before if streamed else now ^ before)


def called(source: Any) -> str:
    """What tells a source from others in a sentence: its path or address, or its class where it is in memory."""
    return f"'{without_secrets(source)}'" if isinstance(source, str | Path) else f"({type(source).__name__})"
