"""`pretrain`: from a source without labels to a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelfree import runtime
from labelfree.data import doctor
from labelfree.data.dataset import Dataset, Description
from labelfree.encoders.weights import load_weights
from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import infinite, read_json, standing, tidy, write_json
from labelfree.modalities.base import Choice, Modality
from labelfree.run import Run
from labelfree.settings import whole
from labelfree.training import job as jobs
from labelfree.training import processes
from labelfree.training.checkpoint import load_state, newest_state
from labelfree.training.folder import forget, held, name_of, new_folder, place_of, start_folder
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
    engine_settings,
    make_plan,
    moved,
    resolve_machine,
)
from labelfree.training.reconstructions import write_reconstructions
from labelfree.training.recorder import Recorder
from labelfree.training.same import Marks, called, changes_by_itself, check_agreed, check_unchanged, marks_of

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
    init = None if init is None else Path(init).expanduser()
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
    accelerator = runtime.checked_device(engine.accelerator, engine.devices).type
    runtime.prepare_products(engine.deterministic)
    if not processes.is_first():
        return _launch(None, Path(), source, network, {}, accelerator)
    with new_folder(out, name_of(source, modality)) as folder:
        spec = f"custom:{type(network).__name__}" if network is not None else str(encoder)
        if init is not None and init.is_dir():
            modality, spec, settings = _like(init, modality, spec, settings)
        ask = partial(make_plan, source, modality=modality, encoder=spec, seed=seed, seconds=length["seconds"])
        job, found = _choose(partial(ask, settings=settings), method, spec, source, network, init)
        _fit_time(job, length, began, found)
        with held(folder):
            start_folder(folder, job, source, found, init)
            try:
                return _launch(job, folder, source, network, job.modality.state(), accelerator)
            except LabelfreeError:
                if not (folder / "metrics.jsonl").exists():  # no process began: it would be a run of nothing
                    forget(folder)
                raise


def _fit_time(job: Job, length: Mapping[str, Any], began: float, found: Description) -> None:
    """Try a few steps, resolve how many there will be, and say what will be trained."""
    plan, seconds = job.plan, length["seconds"]
    engine = plan.training
    device, world = runtime.checked_device(engine.accelerator, engine.devices), _world(plan)
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
    init: Path | None,
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


def _like(run: Path, modality: str | None, spec: str, settings: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The kind of data and its settings, and the encoder, of the run that is started from, unless they are given anew.

    Raises:
        LabelfreeError: it is no run, or of another kind of data.
    """
    config = read_json(standing(run / "encoder") / "config.json")
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
    plan: Plan, data: Modality, source: Any, dataset: Dataset, network: nn.Module | None, init: Path | None
) -> Job:
    """Fit the modality, bring the data near, build the network."""
    if init is not None and init.is_dir():
        data.load_state(read_json(standing(init / "encoder") / "config.json")["modality"]["state"])
        dataset = data.open(source)
    else:
        data.fit(dataset)
        if (where := infinite(data.state())) is not None:
            raise LabelfreeError(
                f"Values of the source are too large: its statistics are not finite ({where}).",
                "Rescale them, or leave them out.",
            )
    nearby, plan = jobs.near(data.training_set(dataset, plan.objective_class().needs), data, plan)
    quarantine = jobs.by_name(jobs.check_readable(nearby, plan.training))
    if changes_by_itself(nearby, source):
        say(
            f"The source {called(source)} gives other samples each time it is read, so that this run could not be "
            "resumed. Leave random transforms to Labelfree.",
            "yellow",
        )
    _say_quick_look(nearby if nearby.origin()[0] is dataset else dataset, data)
    plan = jobs.fit_batch(plan, len(nearby), _world(plan))
    plan = resolve_machine(plan, plan.training.cache == "none", nearby)
    encoder = jobs.build_encoder(plan, data, nearby, network)
    counted = None
    if init is not None:
        load_weights(encoder, init)
    elif network is None:
        counted = data.warm(encoder)
    objective = jobs.build_objective(plan, data, nearby, encoder)
    if counted and objective.next_head is not None:
        counted = data.warm_next(encoder, objective.next_head) or counted
    if counted:
        plan = plan.model_copy(update={"choices": [*plan.choices, counted.record()]})
    # a network of the library's may have been built from a folder with weights, and those of a pair from runs
    given = bool(init or counted or network is not None or encoder.spec or getattr(data, "runs", None))
    return Job(plan, data, nearby, objective, quarantine, given, dataset.fingerprint())


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


def _resume(folder: Path, source: Any, network: nn.Module | None, settings: Mapping[str, Any]) -> Run:
    run = Run(folder, network)
    folder = run.path
    if run.state == "finished":
        say(f"'{folder}' is finished: {run.info['steps']} steps.")
        return run
    if source is None and run.info["source"] is None:
        raise LabelfreeError(
            f"Where the source of '{folder}' lies was not written down: it was no path, or its address has a password.",
            "Give it again: pretrain(source, resume=...).",
        )
    where = run.info["source"] if source is None else source
    plan = _plan_here(run, settings)
    runtime.prepare_machine(int(plan.training.threads))
    runtime.prepare_products(plan.training.deterministic)
    if not processes.is_first():
        return _launch(None, folder, where, network, {}, plan.training.accelerator)
    with held(folder):
        for place in (folder, folder / "checkpoints"):
            tidy(place)
        run = Run(folder, network)  # as whoever held it before has left it
        return run if run.state == "finished" else _go_on(run, _plan_here(run, settings), where)


def _plan_here(run: Run, settings: Mapping[str, Any]) -> Plan:
    """The plan of a run, to go on with on this machine. Raises LabelfreeError where that cannot be."""
    plan = moved(Plan.of_run(run.path, run.info), settings)
    if plan.training.batch_size % _world(plan):
        raise LabelfreeError(
            f"A batch of {plan.training.batch_size} cannot be shared by {_world(plan)} processes.", "Lower devices."
        )
    check_tensorboard(plan.training.tensorboard)
    return plan


def _go_on(run: Run, plan: Plan, source: Any) -> Run:
    """Train an unfinished run to its end, by its plan on this machine, from its last checkpoint."""
    folder, network = run.path, run.own_encoder
    if run.info.get("given") and newest_state(folder / "checkpoints") is None:
        raise LabelfreeError(
            f"'{folder}' has lost the weights that it started from, which do not follow from its seed.",
            "Start a new run as this one was started.",
        )
    before, state = Plan.of_run(folder, run.info), read_json(folder / "modality.json")
    job = _assemble(plan, state, source, network)
    check_unchanged(folder, run.info, job, source)
    _say_choices(job.plan.choices[len(before.choices) :])
    now = dict(run.info)
    if job.plan != before:
        used = {**run.info["settings"], "training": job.plan.training.model_dump(mode="json")}
        now |= {"plan": job.plan.model_dump(mode="json"), "settings": used, "choices": job.plan.choices}
    if (place := place_of(source)) is not None:
        now["source"] = place
    if now != run.info:
        write_json(folder / "run.json", now)
    return _launch(job, folder, source, network, state, plan.training.accelerator)


def _assemble(plan: Plan, state: Mapping[str, Any], source: Any, network: nn.Module | None) -> Job:
    """The job of a resolved plan, as it was when the plan was made (weights come from the checkpoint)."""
    data = plan.new_modality()
    data.load_state(state)
    opened = data.open(source)
    dataset, plan = jobs.near(data.training_set(opened, plan.objective_class().needs), data, plan)
    bad = jobs.check_readable(dataset, plan.training)
    encoder = jobs.build_encoder(plan, data, dataset, network)
    return Job(plan, data, dataset, jobs.build_objective(plan, data, dataset, encoder), jobs.by_name(bad))


@dataclass
class Assignment:
    """What each process needs to take part in a training.

    Attributes:
        marks: what its samples are known by, where others have to find the same ones.
        launched: when it was asked, in seconds of a clock that the processes of a machine share, and that nobody sets:
            only the first process reckons with it.
    """

    plan: dict[str, Any]
    state: Mapping[str, Any]
    folder: Path
    source: Any
    network: nn.Module | None
    marks: Marks | None
    launched: float


def _launch(
    job: Job | None, folder: Path, source: Any, network: nn.Module | None, state: Mapping[str, Any], accelerator: str
) -> Run:
    """Train in as many processes as were asked for and return the run; without a `job`, as the first process says."""
    assignment = None
    world = processes.outside_world() if job is None else _world(job.plan)
    if job is not None:
        marks = marks_of(job.dataset, source) if world > 1 else None
        assignment = Assignment(
            job.plan.model_dump(mode="json"), state, folder, source, network, marks, time.monotonic()
        )
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
        if assignment.marks is not None:
            check_agreed(job, assignment.source, assignment.marks)
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
