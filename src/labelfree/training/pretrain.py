"""`pretrain`: from a source without labels to a run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelfree import runtime
from labelfree.data import doctor
from labelfree.data.dataset import Dataset, Description
from labelfree.encoders.weights import load_weights
from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import (
    is_address,
    no_place,
    read_json,
    without_secrets,
    write_json,
)
from labelfree.modalities.base import Choice, Modality
from labelfree.run import Run
from labelfree.settings import whole
from labelfree.training import job as jobs
from labelfree.training import processes
from labelfree.training.checkpoint import load_state, save_state
from labelfree.training.job import Job
from labelfree.training.length import read_length, resolve_length
from labelfree.training.logs import (
    check_tensorboard,
    counted,
    duration,
    say,
    silence,
)
from labelfree.training.plan import (
    OF_MACHINE,
    Plan,
    check_device,
    engine_settings,
    make_plan,
    moved,
    resolve_machine,
)
from labelfree.training.reconstructions import write_reconstructions
from labelfree.training.recorder import Recorder

#: The method for encoders that the usual one of a kind of data asks too much of: one vector a sample will do.
UNDEMANDING = "simclr"
#: Steps, below which a training that has not even seen the whole source is worth a word.
FEW = 50
#: Cores that others use, from which on it is worth a word.
BUSY = 0.5


@runtime.state_kept()
def pretrain(
    source: Any = None,
    *,
    modality: str | None = None,
    method: str = "auto",
    encoder: str | nn.Module = "auto",
    out: str | Path | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    time_limit: float | str | None = None,
    seed: int | None = None,
    init: str | Path | None = None,
    resume: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Pretrain an encoder on data without labels.

    Args:
        source: a folder, a file, an array, a list of texts, a dataset. With `resume`: where it lies now, if it moved.
        modality: its kind of data; None to recognise it.
        method: an objective or a recipe; "auto" to choose by data and time.
        encoder: for instance "timm:resnet18", "tiny", or a network of yours; "auto" to choose.
        out: folder of the run; must not exist. By default `runs/NAME`.
        epochs, steps, time_limit: how long, one of them; by default ten minutes. Time in seconds or as "10m".
        seed: of every random number, from 0 on; 0 by default.
        init: a run to start from, whose kind of data, its settings, and encoder are taken; or a file of the library's
            weights.
        resume: a run to continue; it ends as if it had never stopped (see `docs/resume.md` for time limits). Only the
            source, a network of yours, and where to compute (accelerator, devices, cache, threads, workers) may be
            given with it; elsewhere its numbers are no longer the same to the bit.
        **settings: of the engine, the objective and the modality, by name.

    Returns:
        The run; its `state` is "finished", or "stopped" after Ctrl-C or SIGTERM.

    Raises:
        LabelfreeError: anything that the user can mend.
    """
    began = time.perf_counter()
    processes.check_guarded()
    network = encoder if isinstance(encoder, nn.Module) else None
    if resume is not None:
        options: dict[str, Any] = {"modality": modality, "method": method, "out": out, "epochs": epochs, "steps": steps}
        options |= {"time_limit": time_limit, "seed": seed, "init": init, "encoder": None if network else encoder}
        given = [key for key, value in options.items() if value not in (None, "auto", 0)]
        given += [key for key in settings if key.removeprefix("training.") not in OF_MACHINE]
        _check_unchanged(resume, given)
        return _resume(Path(resume), source, network, settings)
    if source is None:
        raise LabelfreeError("There is no source to learn from.", "Name a folder, a file or an array.")
    length, seed = read_length(epochs, steps, time_limit), whole("seed", seed or 0)
    engine = engine_settings(settings)
    accelerator = check_device(engine).type
    runtime.prepare_products(engine.deterministic)
    if not processes.is_first():
        return _launch(None, Path(), source, network, {}, accelerator)
    with _new_folder(out, _name_of(source, modality)) as folder:
        spec = f"custom:{type(network).__name__}" if network is not None else str(encoder)
        if init is not None and Path(init).is_dir():
            modality, spec, settings = _like(Path(init), modality, spec, settings)
        ask = partial(make_plan, source, modality=modality, encoder=spec, seed=seed, seconds=length["seconds"])
        job, found = _choose(partial(ask, settings=settings), method, spec, source, network, init)
        _fit_time(job, length, began, found)
        _start_folder(folder, job, source, found, init)
    if job.given:  # other processes, and a run that is resumed before its first checkpoint, start there too
        training = jobs.new_training(job, check_device(job.plan.training))
        save_state(folder / "checkpoints", 0, job.objective, training.optimizer)
        del training  # its momentum need not lie on the device twice
    try:
        return _launch(job, folder, source, network, job.modality.state(), accelerator)
    except LabelfreeError:
        if not (folder / "metrics.jsonl").exists():  # no process began: what lies there are words about nothing
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _fit_time(job: Job, length: Mapping[str, Any], began: float, found: Description) -> None:
    """Try a few steps, resolve how many there will be, and say what will be trained."""
    plan, seconds = job.plan, length["seconds"]
    device, world = check_device(plan.training), _world(plan)
    runtime.prepare_machine(int(plan.training.threads))
    allowance = 4.0 if seconds is None else min(10.0, 0.03 * seconds)
    others = runtime.Others()
    step_seconds = jobs.try_steps(job, device, world, allowance)
    busy = others.cores
    left = None if seconds is None else max(step_seconds, 0.97 * (seconds - (time.perf_counter() - began)))
    enough = plan.objective_class().enough(found)
    plan = resolve_length(plan, len(job.dataset) // plan.training.batch_size, length, step_seconds, left, enough)
    job.plan = plan
    _say_plan(plan, step_seconds, runtime.peak_memory(device))
    if device.type == "cpu" and world == 1 and not plan.training.workers:  # processes of ours would count as others
        _say_busy(busy, int(plan.training.threads))
    _say_short(plan, step_seconds)


def _choose(
    ask: Callable[..., tuple[Plan, Modality, Dataset, Description]],
    method: str,
    spec: str,
    source: Any,
    network: nn.Module | None,
    init: str | Path | None,
) -> tuple[Job, Description]:
    """A job of the method; where none was named and a given encoder cannot serve the usual one, of a simpler one."""
    plan, data, dataset, found = ask(method=method)
    say_found(found)
    try:
        return _prepare(plan, data, source, dataset, network, init), found
    except Refusal:
        if method != "auto" or spec == "auto" or plan.method == UNDEMANDING:
            raise
    reason = f"{plan.method}, the usual one, asks more of an encoder than {spec} can do"
    plan, data, dataset, found = ask(method=UNDEMANDING)
    plan.choices.append(Choice("method", UNDEMANDING, reason).record())
    return _prepare(plan, data, source, dataset, network, init), found


def _check_unchanged(run: str | Path, given: list[str]) -> None:
    """Raises LabelfreeError where options or settings are given that a resumed run cannot heed."""
    if given:
        raise LabelfreeError(
            f"'{run}' goes on as it was started, and takes no other {', '.join(given)}.",
            f"Leave that out, or start a new run from its weights: --init {run}.",
        )


@contextmanager
def _new_folder(out: str | Path | None, name: str) -> Iterator[Path]:
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


def _name_of(source: Any, modality: str | None) -> str:
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


def _like(run: Path, modality: str | None, spec: str, settings: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The kind of data and its settings, and the encoder, of the run that is started from, unless they are given anew.

    Raises:
        LabelfreeError: it is no run, or of another kind of data.
    """
    config = read_json(run / "encoder" / "config.json")
    kind = config["modality"]
    if modality not in (None, "auto", kind["name"]):
        raise LabelfreeError(
            f"'{run}' learnt from {kind['name']} data, and cannot go on with {modality}.", "Start a new run."
        )
    if spec == "auto":
        spec = config["encoder"]["spec"]
        if spec.startswith("custom:"):
            raise LabelfreeError(f"'{run}' was trained with a network of yours.", "Give it: encoder=network.")
    return kind["name"], spec, {**kind["settings"], **settings}


def _prepare(
    plan: Plan, data: Modality, source: Any, dataset: Dataset, network: nn.Module | None, init: str | Path | None
) -> Job:
    """Fit the modality, bring the data near, build the network."""
    if init is not None and Path(init).is_dir():
        data.load_state(read_json(Path(init) / "encoder" / "config.json")["modality"]["state"])
        dataset = data.open(source)
    else:
        data.fit(dataset)
    nearby, plan = jobs.near(data.training_set(dataset, plan.objective_class().needs), data, plan)
    quarantine = jobs.check_readable(nearby, plan.training)
    _say_quick_look(nearby if nearby.origin()[0] is dataset else dataset, data)
    plan = jobs.fit_batch(plan, len(nearby), _world(plan))
    plan = resolve_machine(plan, plan.training.cache == "none", nearby)
    encoder = jobs.build_encoder(plan, data, nearby, network)
    counted = None
    if init is not None:
        load_weights(encoder, Path(init))
    elif network is None:
        counted = data.warm(encoder)
    objective = jobs.build_objective(plan, data, nearby, encoder)
    if counted and objective.next_head is not None:
        counted = data.warm_next(encoder, objective.next_head) or counted
    if counted:
        plan = plan.model_copy(update={"choices": [*plan.choices, counted.record()]})
    return Job(plan, data, nearby, objective, quarantine, bool(init or counted), dataset.fingerprint())


def _say_quick_look(dataset: Dataset, data: Modality) -> None:
    """The doctor's cheap part: what seems wrong, before time is spent on it. Nothing is left out for it."""
    findings, looked = doctor.quick(dataset, data)
    if findings:
        words = ", ".join(f"{len(found.samples):,} {found.check}" for found in findings)
        say(
            f"Of {counted(looked, 'sample')} looked at: {words}. Near copies, labels and outliers were not looked for; "
            "`labelfree doctor SOURCE` does, and shows examples.",
            "yellow",
        )


def say_found(found: Description) -> None:
    """Print what a source holds."""
    facts = " · ".join(f"{key} {value}" for key, value in found.facts.items())
    say(f"Found {counted(found.count, 'sample')} of {found.modality} data{': ' if facts else ''}{facts}", "bold")


def _say_choices(choices: list[dict[str, Any]]) -> None:
    for choice in choices:
        say(f"  {choice['key']} = {choice['value']}  ({choice['reason']})", "dim")


def _say_plan(plan: Plan, step_seconds: float, memory: int) -> None:
    _say_choices(plan.choices)
    epochs = plan.steps * plan.training.batch_size / plan.count
    say(
        f"Will train {plan.encoder} with {plan.method} for {counted(plan.steps, 'step')} of {plan.training.batch_size} "
        f"({epochs:.1f} passes): about {duration(plan.steps * step_seconds)}, peak memory {memory / 2**30:.1f} GiB."
    )


def _say_short(plan: Plan, step_seconds: float) -> None:
    """A word where a time limit leaves so few steps that hardly anything can be learnt."""
    whole = -(-plan.count // plan.training.batch_size)
    if plan.time_left is not None and plan.steps < min(FEW, whole):
        say(
            f"A training of {counted(plan.steps, 'step')} is hardly a beginning: one pass over the source would take "
            f"about {duration(whole * step_seconds)}. Give more time, or a smaller batch_size.",
            "yellow",
        )


def _say_busy(busy: float, threads: int) -> None:
    """A word where other programs are in the way of several threads."""
    free = max(1, round(runtime.cores() - busy))
    if busy >= BUSY and threads > free:
        say(
            f"Other programs keep {busy:.1f} of {runtime.cores()} cores busy, and threads wait for each other: "
            f"threads={free} may well be faster.",
            "yellow",
        )


def _place(source: Any) -> str | None:
    """Where a source lies, as it can be found again from anywhere; None where it has no place, or a secret one."""
    if is_address(source):
        return str(source) if without_secrets(source) == source else None
    return str(Path(source).expanduser().resolve()) if isinstance(source, str | Path) else None


def _before(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """What the first weights have seen: the sources of the runs that they are of, and of those these began with."""
    found: list[dict[str, Any]] = []
    for info in (read_json(Path(run) / "run.json") for run in runs if (Path(run) / "run.json").exists()):
        known = {key: info.get(key) for key in ("source", "fingerprint", "source_fingerprint")}
        found += [known, *info.get("before", ())]
    return found


def _start_folder(folder: Path, job: Job, source: Any, found: Description, init: str | Path | None) -> None:
    """Write what is known before the first step. Raises LabelfreeError where another run began in the folder."""
    try:
        (folder / "run.json").touch(exist_ok=False)
    except FileExistsError:
        raise _taken(folder) from None
    plan = job.plan
    info = {
        "state": "running",
        "source": _place(source),
        "found": {"count": found.count, "facts": dict(found.facts)},
        "fingerprint": job.dataset.fingerprint(),
        "source_fingerprint": job.opened,
        "before": _before([*([] if init is None else [init]), *(run for _, run in job.modality.runs.values())]),
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
    write_json(folder / "run.json", info)
    write_json(folder / "modality.json", job.modality.state())


def _resume(folder: Path, source: Any, network: nn.Module | None, settings: Mapping[str, Any]) -> Run:
    run = Run(folder, network)
    if run.state == "finished":
        say(f"'{folder}' is finished: {run.info['steps']} steps.")
        return run
    if source is None and run.info["source"] is None:
        raise LabelfreeError(
            f"Where the source of '{folder}' lies was not written down: it was no path, or its address has a password.",
            "Give it again: pretrain(source, resume=...).",
        )
    where = run.info["source"] if source is None else source
    before = Plan.model_validate(run.info["plan"])
    plan = moved(before, settings)
    if plan.training.batch_size % _world(plan):
        raise LabelfreeError(
            f"A batch of {plan.training.batch_size} cannot be shared by {_world(plan)} processes.", "Lower devices."
        )
    check_tensorboard(plan.training.tensorboard)
    runtime.prepare_machine(int(plan.training.threads))
    runtime.prepare_products(plan.training.deterministic)
    state = read_json(folder / "modality.json")
    accelerator = plan.training.accelerator
    if not processes.is_first():
        return _launch(None, folder, where, network, {}, accelerator)
    job = _assemble(plan, state, where, network)
    if job.dataset.fingerprint() != run.info["fingerprint"]:
        raise LabelfreeError(
            f"'{without_secrets(where)}' has changed since '{folder}' was started, so it cannot continue exactly.",
            f"Start a new run from its weights: --init {folder}.",
        )
    _say_choices(job.plan.choices[len(before.choices) :])
    if job.plan != before:
        used = {**run.info["settings"], "training": job.plan.training.model_dump(mode="json")}
        now = {"plan": job.plan.model_dump(mode="json"), "settings": used, "choices": job.plan.choices}
        write_json(folder / "run.json", run.info | now)
    return _launch(job, folder, where, network, state, accelerator)


def _assemble(plan: Plan, state: Mapping[str, Any], source: Any, network: nn.Module | None) -> Job:
    """The job of a resolved plan, as it was when the plan was made (weights come from the checkpoint)."""
    data = plan.new_modality()
    data.load_state(state)
    opened = data.open(source)
    dataset, plan = jobs.near(data.training_set(opened, plan.objective_class().needs), data, plan)
    bad = jobs.check_readable(dataset, plan.training)
    encoder = jobs.build_encoder(plan, data, dataset, network)
    return Job(plan, data, dataset, jobs.build_objective(plan, data, dataset, encoder), bad)


@dataclass
class Assignment:
    """What each process needs to take part in a training; `launched` is when it was asked, in seconds of a clock that
    the processes of a machine share, and that nobody sets: only the first process reckons with it.
    """

    plan: dict[str, Any]
    state: Mapping[str, Any]
    folder: Path
    source: Any
    network: nn.Module | None
    launched: float


def _launch(
    job: Job | None, folder: Path, source: Any, network: nn.Module | None, state: Mapping[str, Any], accelerator: str
) -> Run:
    """Train in as many processes as were asked for and return the run; without a `job`, as the first process says."""
    assignment = None
    if job is not None:
        assignment = Assignment(job.plan.model_dump(mode="json"), state, folder, source, network, time.monotonic())
    world = processes.outside_world() if job is None else _world(job.plan)
    if job is not None and world > processes.outside_world():  # the processes to come hold all of it themselves
        runtime.leave_device(job.objective)
    assignment = processes.run_everywhere(_work, assignment, job, accelerator, world)
    run = Run(assignment.folder, network)
    if job is not None and job.objective.keeps:
        write_reconstructions(run, job.dataset)
    return run


def _world(plan: Plan) -> int:
    """Processes in all: those that are there already, or as many as the plan asks for."""
    return max(processes.outside_world(), plan.training.devices if processes.outside_world() == 1 else 1)


def _work(fabric: Any, assignment: Assignment, job: Job | None) -> None:
    """What each process does: put the job together where it is not there yet, train, and leave the run behind."""
    plan = Plan.model_validate(assignment.plan)
    runtime.prepare_machine(int(plan.training.threads))
    if plan.training.deterministic:
        torch.use_deterministic_algorithms(True)
    if job is None:
        with silence():  # it was said when the plan was made
            job = _assemble(plan, assignment.state, assignment.source, assignment.network)
    device = fabric.device
    if isinstance(job.dataset, jobs.Cached) and plan.training.cache == "device":
        job.dataset.to(device)
    training = jobs.new_training(job, device, fabric.global_rank, fabric.world_size)
    processes.wrap(fabric, training)
    start = load_state(assignment.folder / "checkpoints", training.objective, training.optimizer)
    waited = max(0.0, time.monotonic() - assignment.launched)
    Recorder(assignment.folder, job, training, fabric, start, waited).run()
    if fabric.world_size == 1 or plan.training.strategy == "ddp":  # a network of the user's is theirs again
        runtime.leave_device(job.objective)
