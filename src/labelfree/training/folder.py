"""The folder of a run while it comes into being and is trained: new, one process's alone, and telling of what it is."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from labelfree import runtime
from labelfree.data.dataset import Description
from labelfree.errors import LabelfreeError
from labelfree.files import is_address, no_place, read_json, without_secrets, write_json, write_new_json
from labelfree.training.checkpoint import save_state
from labelfree.training.job import Job
from labelfree.training.optim import build_optimizer
from labelfree.training.recorder import write_quarantine
from labelfree.training.same import kept_of

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second process off a run
    fcntl = None  # type: ignore[assignment]

#: The file that the process which trains a run holds; hidden, so that no source takes it for data.
LOCK = ".lock"


@contextmanager
def new_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """The run's folder, new and empty: nothing of anyone's is overwritten, and no run that starts meanwhile takes it.

    What was made for it goes again where it is still empty when an error leaves the block.
    """
    if out is None:
        folder, made = _numbered(name)
    else:
        folder = Path(out).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise _taken(folder)
        made = _missing(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise no_place(folder, error) from None
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # there is something in it
            for place in made:
                place.rmdir()
        raise


def _missing(folder: Path) -> list[Path]:
    """The folder and those around it, as far as they are not there, from the innermost on."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def name_of(source: Any, modality: str | None) -> str:
    """What a run is called where nobody says: as its source; data in memory only have their kind, or class, as one."""
    if isinstance(source, str | Path):
        place = without_secrets(source).partition("?")[0] if is_address(source) else source
        return Path(place).expanduser().resolve().stem
    return type(source).__name__ if modality in (None, "auto") else str(modality)


def _numbered(name: str) -> tuple[Path, list[Path]]:
    """A new folder of this name among `runs`, with a number where there is one already, and what was made for it."""
    for number in count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        made = _missing(folder)
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder, made
    raise AssertionError("there is always a next number")


def _taken(folder: Path) -> LabelfreeError:
    return LabelfreeError(f"'{folder}' exists already.", "Choose another --out, or continue it with --resume.")


def place_of(source: Any) -> str | None:
    """Where a source lies, as it can be found again from anywhere; None where it has no place, or a secret one."""
    if is_address(source):
        return str(source) if without_secrets(source) == source else None
    return str(Path(source).expanduser().resolve()) if isinstance(source, str | Path) else None


def start_folder(folder: Path, job: Job, source: Any, found: Description, init: Path | None = None) -> None:
    """Write what is known before the first step; all of it, or nothing.

    Raises:
        LabelfreeError: another run began in the folder; the disk is full.
    """
    if not write_new_json(folder / "run.json", _beginning(job, source, found, init)):
        raise _taken(folder)
    try:
        write_json(folder / "modality.json", job.modality.state())
        write_quarantine(folder / "quarantine.jsonl", list(job.quarantine.values()))
        if job.given:  # other processes, and a run that is resumed before its first checkpoint, start there too
            training = job.plan.training
            optimizer = build_optimizer(job.objective.parameters(), training, training.batch_size)
            save_state(folder / "checkpoints", 0, job.objective, optimizer)
    except BaseException:
        forget(folder)
        raise


def forget(folder: Path) -> None:
    """Take away what `start_folder` wrote."""
    for name in ("run.json", "modality.json", "quarantine.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _before(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """What the first weights have seen: the sources of the runs that they are of, and of those these began with."""
    found: list[dict[str, Any]] = []
    for info in (read_json(Path(run) / "run.json") for run in runs if (Path(run) / "run.json").exists()):
        known = {key: info.get(key) for key in ("source", "fingerprint", "source_fingerprint")}
        found += [known, *info.get("before", ())]
    return found


def _beginning(job: Job, source: Any, found: Description, init: Path | None) -> dict[str, Any]:
    """What `run.json` says of a run without steps."""
    plan = job.plan
    return {
        "state": "running",
        "source": place_of(source),
        "found": {"count": found.count, "facts": dict(found.facts)},
        "fingerprint": job.dataset.fingerprint(),
        "source_fingerprint": job.opened,
        "before": _before([*([] if init is None else [init]), *(run for _, run in job.modality.runs.values())]),
        "kept": kept_of(job.dataset),
        "given": job.given,
        "modality": plan.modality,
        "method": plan.method,
        "objective": plan.objective,
        "encoder": plan.encoder,
        "seed": plan.seed,
        "steps": plan.steps,
        "step": 0,
        "samples": 0,
        "seconds": 0.0,
        "settings": {
            "training": plan.training.model_dump(mode="json"),
            "objective": plan.objective_settings,
            "modality": plan.modality_settings,
        },
        "choices": plan.choices,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "warnings": [],
        "plan": plan.model_dump(mode="json"),
    }


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes off a run while this one trains it. A lock goes with its process, however that ends.

    Raises:
        LabelfreeError: another process trains it, or nothing can be written there.
    """
    lock = None if fcntl is None else _lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        if lock is not None:
            _locks.discard(lock)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """The lock of a folder as an open file that says whose it is; None where the file system knows no locks."""
    while True:
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise no_place(folder / LOCK, error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise LabelfreeError(
                f"'{folder}' is being trained by {holder}.", "Wait until it has ended, or stop it first."
            ) from None
        except OSError:
            os.close(file)
            return None
        if os.fstat(file).st_nlink:
            break
        os.close(file)  # whoever held it ended just now and took the file away
    _watch_forks()
    _locks.add(file)
    with suppress(OSError):  # on a full disk the lock has no name of its holder
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    return file


#: Locks that this process holds: workers that are forked from it, and may outlive it for a while, hold none.
_locks: set[int] = set()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for file in _locks:
        os.close(file)
    _locks.clear()
