"""What will be trained: every "auto" resolved from the data, the machine and the time allowed, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, ValidationError

from labelfree import registry, runtime
from labelfree.data.dataset import Dataset, Description
from labelfree.data.loader import can_be_handed
from labelfree.data.named import ENDINGS, refuse_names
from labelfree.data.once import remembering
from labelfree.data.sources import (
    ARRAYS,
    HEAD_ROWS,
    PACKED,
    SHEETS,
    TABLES,
    frame,
    list_files,
    listed_files,
    load_arrays,
    read_head,
)
from labelfree.errors import LabelfreeError
from labelfree.files import existing, is_address, without_secrets
from labelfree.modalities.base import Budget, Choice, Modality
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe
from labelfree.settings import Settings, share_out
from labelfree.training import processes
from labelfree.training.logs import check_tensorboard
from labelfree.training.settings import TrainSettings

DEFAULT_LIMIT = "10m"
#: Share of a folder's samples that are of another kind, beyond which the kind must be named.
MIXED = 0.2
#: A guess no surer than this is for want of a better one: any file is bytes, and any words are texts.
UNLIKELY = 0.1
#: A guess no surer than this says only that a table has numbers or words, beside which it may name its samples.
UNSURE = 0.3

#: Bytes of shared memory, through which processes hand over batches, below which none are started to read.
SHARED = 512 << 20

#: Settings that say where to compute, not what: a run that goes on may have others.
OF_MACHINE = ("accelerator", "devices", "cache", "threads", "workers")


class Plan(Settings):
    """A resolved training: with the source and the seed it says everything, and a run can be repeated from it.

    Attributes:
        time_left, most_steps: what bounds the steps where a time limit was given; seconds, when all is prepared.
    """

    modality: str
    method: str
    objective: str
    encoder: str
    causal: bool
    seed: int
    steps: int = 0
    time_left: float | None = None
    most_steps: int | None = None
    count: int = 0
    training: TrainSettings
    objective_settings: dict[str, Any]
    modality_settings: dict[str, Any]
    choices: list[dict[str, Any]] = Field(default_factory=list)

    @classmethod
    def of_run(cls, run: str | Path, info: Mapping[str, Any]) -> Plan:
        """The plan of the run in folder `run`, whose `run.json` is `info`.

        Raises:
            LabelfreeError: another version of Labelfree wrote it, with settings that this one does not know.
        """
        try:
            return cls.model_validate(info["plan"])
        except ValidationError as error:
            key = ".".join(str(part) for part in error.errors()[0]["loc"])
            version = info.get("versions", {}).get("labelfree", "of another version")
            raise LabelfreeError(
                f"'{run}' was written by Labelfree {version}, and this one does not understand its setting '{key}'.",
                f"Use that version, or start a new run from its weights: --init {run}.",
            ) from None

    def objective_class(self) -> type[Objective]:
        return registry.method(self.objective)[0]

    def new_modality(self) -> Modality:
        """The modality with this plan's settings, not yet fitted."""
        cls = registry.find("modality", registry.modalities(), self.modality)
        return cls(cls.settings_class.read(self.modality_settings, cls.name))


def recognise(source: Any, among: Collection[str] = ()) -> tuple[str, str]:
    """The modality that `source` looks most like, and the words for why.

    Args:
        source: where the data lies.
        among: the only ones that are meant, if the source may well be one of them.

    Raises:
        LabelfreeError: it is not there, is empty, looks like none, or holds files of several kinds.
    """
    path = existing(source) if isinstance(source, str | Path) and not is_address(source) else None
    with remembering():
        guesses = {name: cls.guess(source) for name, cls in registry.modalities().items()}
        meant = {name: guess for name, guess in guesses.items() if name in among and guess[0] > UNLIKELY}
        name, (sure, words) = max((meant or guesses).items(), key=lambda item: item[1][0])
        if path is not None and (name in ("text", "table") or sure <= UNSURE):
            refuse_names(path)
        if sure <= 0:
            _check_readable(source if path is None else path)
            what = f"'{without_secrets(source)}'" if isinstance(source, str | Path) else type(source).__name__
            raise LabelfreeError(
                f"{what} looks like no kind of data that Labelfree knows ({', '.join(guesses)}).",
                "Name it with --modality.",
            )
        if path is not None and name == "bytes":
            _refuse_packed(path)
        if path is not None and path.is_dir():
            _check_kinds(path, name)
    return name, words


def _check_readable(source: Any) -> None:
    """Raises LabelfreeError with what is wrong with a source that nothing recognises, where that can be told."""
    if not isinstance(source, Path):
        listed_files(source, ENDINGS)
        if (table := frame(source, HEAD_ROWS)) is not None:
            _check_filled(table, f"The {type(source).__name__}")
    elif source.is_dir() and not list_files(source):
        raise LabelfreeError(f"'{source}' is a folder without files.", "Name one with data in it.")
    elif source.suffix.lower() in TABLES:
        _check_filled(read_head(source), f"'{source}'")
    elif source.suffix.lower() in ARRAYS:
        load_arrays(source)


def _refuse_packed(path: Path) -> None:
    """Raises LabelfreeError where what nothing but bytes fits is, mostly, packed: what it holds is meant."""
    files = list_files(path) if path.is_dir() else [path]
    if sheet := next((file for file in files if file.suffix.lower() in SHEETS), None):
        raise LabelfreeError(f"'{sheet}' is a spreadsheet, which is not read.", "Save its sheet as CSV.")
    packed = [file for file in files if file.suffix.lower() in PACKED]
    if 2 * len(packed) > len(files):
        raise LabelfreeError(
            f"'{packed[0]}' is packed ({packed[0].suffix}).",
            "Unpack it and name what it holds, or learn its bytes as they are with --modality bytes.",
        )


def _check_filled(head: pa.Table, what: str) -> None:
    """Raises LabelfreeError where a table's first rows, which nothing recognises, hold nothing."""
    if not head.num_rows:
        raise LabelfreeError(f"{what} has no rows.", "Name a table with rows below its header.")
    if all(column.null_count == len(column) for column in head.columns):
        raise LabelfreeError(f"{what} holds nothing: all its columns are empty.", "Check how it was written.")


def _check_kinds(folder: Path, chosen: str) -> None:
    """Raises LabelfreeError where many samples in a folder are of other kinds than `chosen`."""
    kind_of = {suffix: name for name, cls in registry.modalities().items() for suffix in cls.suffixes}
    counts = Counter(kind_of[path.suffix.lower()] for path in list_files(folder, kind_of))
    if counts[chosen] and counts.total() - counts[chosen] > MIXED * counts.total():
        held = " and ".join(f"{count:,} of {name}" for name, count in counts.most_common())
        raise LabelfreeError(
            f"'{folder}' holds files of several kinds of data: {held}.",
            f"Name the kind that is meant, --modality {chosen}, or tie them by row as pairs with a metadata.csv.",
        )


def make_plan(
    source: Any,
    *,
    modality: str | None,
    method: str,
    encoder: str,
    seed: int,
    seconds: float | None,
    settings: Mapping[str, Any],
) -> tuple[Plan, Modality, Dataset, Description]:
    """Resolve what can be known before the first step; the opened source comes with it.

    Args:
        source: where the data lies.
        modality, method, encoder: as the user gave them; None or "auto" to choose.
        seed: of the run.
        seconds: time allowed, None where the user fixed epochs or steps.
        settings: flat `key: value` of the engine, the objective and the modality.
    """
    engine = engine_settings(settings)
    runtime.checked_device(engine.accelerator, engine.devices)
    check_tensorboard(engine.tensorboard)
    _, recipe = (None, None) if method == "auto" else registry.method(method)
    data, choices = _kind_of(source, modality, settings, recipe.modalities if recipe else ())
    kind, dataset = type(data), data.open(source)
    found = dataset.describe()
    offered = {choice.key: choice for choice in data.defaults(found, _budget(engine, seconds, method, settings))}

    def choose(key: str, given: str) -> str:
        if given != "auto":
            return given
        choices.append(offered[key])
        return str(offered[key].value)

    method = choose("method", method)
    objective, recipe = registry.method(method)
    _check_recipe(method, objective, recipe, kind)
    registry.check_fit(objective, data, name=method)
    encoder = registry.lasting(recipe.encoder if encoder == "auto" and recipe and recipe.encoder else encoder)
    if encoder != "auto":
        offered = {key: choice for key, choice in offered.items() if not choice.of_encoder}
    owners = objective.owners()
    _check_kind(settings, {"training": TrainSettings, **owners}, kind)
    shares = share_out(settings, {"training": TrainSettings, **owners, kind.name: kind.settings_class})
    layers = _layers(objective, recipe, kind)
    given = _over(registry.encoder_options(encoder), layers["options"], shares[kind.name])
    options, taken = _with_defaults(given, [c for key, c in offered.items() if key in kind.settings_class.model_fields])
    choices += taken
    if len(owners) > 1:
        asked = {key: value for key, value in layers["options"].items() if key not in shares[kind.name]}
        choices += [Choice(key, value, "one of the methods asks for it, for all") for key, value in asked.items()]
    training, sized = _with_defaults(
        {**layers["training"], **_without_auto(shares["training"])},
        [c for c in offered.values() if c.key == "batch_size"],
    )
    choices += sized
    plan = Plan(
        modality=kind.name,
        method=method,
        objective=objective.name,
        encoder=choose("encoder", encoder),
        causal=registry.needs_causal(objective),
        seed=seed,
        training=TrainSettings.read(training, "training"),
        objective_settings=objective.settings_of(
            {name: {**layers["settings"], **shares[name]} for name in owners}
        ).model_dump(mode="json"),
        modality_settings=kind.settings_class.read(options, kind.name).model_dump(mode="json"),
        choices=[choice.record() for choice in choices],
    )
    if plan.modality_settings != data.settings.model_dump(mode="json"):
        data = plan.new_modality()
        dataset = data.open(source)
        found = dataset.describe()
    return plan, data, dataset, found


def _kind_of(
    source: Any, modality: str | None, settings: Mapping[str, Any], among: Collection[str]
) -> tuple[Modality, list[Choice]]:
    """The modality of a source with the settings of it that are given, and why it is this one, unless it was named.

    Args:
        among: what a recipe is for, and so what is meant where it can be.
    """
    choices = []
    if modality is None or modality == "auto":
        modality, words = recognise(source, among)
        choices.append(Choice("modality", modality, words))
    kind = registry.find("modality", registry.modalities(), modality)
    return kind(kind.settings_class.read(_owned(settings, kind), kind.name)), choices


def _check_kind(settings: Mapping[str, Any], owners: Mapping[str, type[Settings]], kind: type[Modality]) -> None:
    """Raises LabelfreeError where a setting is of another kind of data than the source is read as."""
    known = {key for cls in (*owners.values(), kind.settings_class) for key in cls.model_fields}
    for key in settings.keys() - known:
        others = [name for name, cls in registry.modalities().items() if key in cls.settings_class.model_fields]
        if others:
            what = f"{others[0]}.{key}=…" if kind.settings_class.inner else f"--modality {others[0]}"
            raise LabelfreeError(
                f"'{key}' is a setting of {' and '.join(others)} data, and the source is read as {kind.name} data.",
                f"If {others[0]} data are meant, write {what}.",
            )


def _check_recipe(name: str, objective: type[Objective], recipe: Recipe | None, kind: type[Modality]) -> None:
    """Raises LabelfreeError where the recipe is for other kinds of data."""
    if recipe and recipe.modalities and kind.name not in recipe.modalities:
        raise LabelfreeError(
            f"Recipe '{name}' is for {', '.join(recipe.modalities)}, not for {kind.name}.",
            f"Use its objective: '{objective.name}'.",
        )


def _with_defaults(given: Mapping[str, Any], offered: list[Choice]) -> tuple[dict[str, Any], list[Choice]]:
    """The modality's settings with what it offers where nothing was given, and which of the offers were taken."""
    options, taken = dict(given), []
    for choice in offered:
        if isinstance(choice.value, Mapping):
            options[choice.key] = _over(choice.value, options.get(choice.key, {}))
        elif options.get(choice.key, "auto") == "auto":
            options[choice.key] = choice.value
        else:
            continue
        taken.append(choice)
    return options, taken


def _layers(objective: type[Objective], recipe: Recipe | None, kind: type[Modality]) -> dict[str, dict[str, Any]]:
    """Settings below the user's: the objective's, with the recipe's over them."""
    recipe = recipe or Recipe(source="")
    suiting = {key: value for key, value in objective.options.items() if key in kind.settings_class.model_fields}
    return {
        "training": {**objective.defaults, **recipe.training},
        "settings": dict(recipe.settings),
        "options": {**suiting, **recipe.options},
    }


def _over(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several layers, a later one goes before; mappings are put together, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def _owned(settings: Mapping[str, Any], kind: type[Modality]) -> dict[str, Any]:
    """Those settings that are the modality's, and so are needed to open the source; all keys are checked later."""
    own: dict[str, Any] = {}
    for key, value in settings.items():
        prefix, dot, rest = key.partition(".")
        name = rest if dot and prefix == kind.name else key
        if name in kind.settings_class.model_fields:
            own[name] = value
        elif dot and kind.settings_class.inner and prefix in registry.modalities():
            own.setdefault(kind.settings_class.inner, {})[key] = value
    return own


def engine_settings(settings: Mapping[str, Any]) -> TrainSettings:
    """The engine's settings, as far as they are given: they can be checked before anything is opened."""
    own = {key.removeprefix("training."): value for key, value in settings.items()}
    known = {key: value for key, value in own.items() if key in TrainSettings.model_fields}
    return TrainSettings.read(_without_auto(known), "training")


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's settings but a batch size of "auto", which is the recipe's or else the kind of data's."""
    return {key: value for key, value in settings.items() if (key, value) != ("batch_size", "auto")}


def _budget(engine: TrainSettings, seconds: float | None, method: str, settings: Mapping[str, Any]) -> Budget:
    device = runtime.device(engine.accelerator)
    precision = runtime.best_precision(device) if engine.precision == "auto" else engine.precision
    needs = None if method == "auto" else registry.method(method)[0].needs
    views = None if needs is None else Need.VIEWS in needs
    flops, accelerator = runtime.flops(device, precision), device.type != "cpu"
    return Budget(seconds, flops, accelerator, views, needs or frozenset(), bool(settings.get("case")))


def resolve_machine(plan: Plan, streamed: bool, dataset: Dataset | None = None) -> Plan:
    """Resolve what depends on the machine: precision, threads, workers.

    Args:
        dataset: what is streamed, where it is open already.
    """
    settings = plan.training
    device = runtime.device(settings.accelerator)
    chosen: list[Choice] = []

    def resolve(key: str, value: Any, reason: str) -> Any:
        given = getattr(settings, key)
        if given != "auto":
            return given
        chosen.append(Choice(key, value, reason))
        return value

    fast = "faster than float32 here" if runtime.fast_bf16(device) else "bfloat16 is no faster here"
    cores, beside = runtime.cores(), processes.beside(settings.devices)
    workers, why = _workers(streamed and device.type != "cpu", max(0, min(8, (cores - 1) // beside)), dataset)
    update = {
        "accelerator": resolve("accelerator", device.type, "the fastest device here"),
        "precision": resolve("precision", runtime.best_precision(device), fast),
        "threads": resolve("threads", *_threads(cores, beside)),
        "workers": resolve("workers", workers, why if streamed else "the source is in memory"),
    }
    return plan.model_copy(
        update={"training": settings.model_copy(update=update), "choices": plan.choices + [c.record() for c in chosen]}
    )


def _threads(cores: int, beside: int) -> tuple[int, str]:
    """Threads of each of the processes on this machine, and why so many."""
    share, allowed = max(1, cores // beside), runtime.threads_allowed()
    if allowed is not None and allowed < share:
        return allowed, f"OMP_NUM_THREADS={allowed}"
    return share, f"{cores} cores for {beside} process(es)"


def _workers(useful: bool, most: int, dataset: Dataset | None) -> tuple[int, str]:
    """How many processes read a streamed source, and why."""
    if not (useful and most):
        return 0, "read ahead beside the training"
    if dataset is not None and not can_be_handed(dataset):
        return 0, "the source cannot be handed to other processes"
    if (room := runtime.shared_memory()) < SHARED:
        return 0, f"{room >> 20} MiB of shared memory are free"
    return most, "read ahead beside the training"


def moved(plan: Plan, given: Mapping[str, Any]) -> Plan:
    """The plan of a run that goes on with `given` settings of the machine, of `OF_MACHINE`, in place of its own.

    Raises:
        LabelfreeError: there is no such device here.
    """
    settings = engine_settings(given)
    own = {key: getattr(settings, key) for key in OF_MACHINE if {key, f"training.{key}"} & given.keys()}
    training = plan.training.model_copy(update=own)
    runtime.checked_device(training.accelerator, training.devices)
    anew = [
        Choice(key, value, f"was {old}").record()
        for key, value in own.items()
        if (old := getattr(plan.training, key)) != value
    ]
    changed = plan.model_copy(update={"training": training, "choices": [*plan.choices, *anew]})
    return resolve_machine(changed, streamed=training.cache == "none")
