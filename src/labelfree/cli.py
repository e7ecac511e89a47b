"""The command line: one verb a function, thin. Nothing heavy is imported until a verb runs.

For people, a verb prints to standard output. With `--json` everything it says goes to standard error, and its answer is
one JSON object, the last line on standard output.
"""

from __future__ import annotations

import re
import signal
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from labelfree.command import (
    BUG,
    FAILED,
    INTERRUPTED,
    MISTAKE,
    Accelerator,
    Answer,
    Config,
    Force,
    Group,
    Label,
    RunPath,
    TimeLimit,
    Train,
    Words,
    app,
    given,
    print_json,
    table,
    verb,
    warn,
)
from labelfree.errors import LabelfreeError, machine_trouble
from labelfree.files import TABLES, writable

if TYPE_CHECKING:
    from labelfree.evaluation.protocol import Evaluation


@verb("photos/ --time-limit 10m", "series.npz --method ts2vec --epochs 20 batch_size=16", "--resume runs/photos")
def pretrain(
    source: Annotated[str | None, Argument(metavar="SOURCE", help="Unlabelled data: a folder or a file.")] = None,
    settings: Words = None,
    modality: Annotated[
        str | None, Option(metavar="K", help="Kind of data, see `labelfree list modalities`; guessed from the source.")
    ] = None,
    method: Annotated[str | None, Option(metavar="M", help="See `labelfree list methods`; chosen if absent.")] = None,
    encoder: Annotated[str | None, Option(metavar="E", help="See `labelfree list encoders`; chosen if absent.")] = None,
    out: Annotated[str | None, Option(metavar="RUN", help="Folder for the run; a new one in runs/ if absent.")] = None,
    epochs: Annotated[int | None, Option(metavar="N", help="Passes over the data.")] = None,
    steps: Annotated[int | None, Option(metavar="N", help="Optimiser steps.")] = None,
    time_limit: TimeLimit = None,
    seed: Annotated[int | None, Option(help="Same seed, same encoder.")] = None,
    init: Annotated[str | None, Option(metavar="RUN|FILE", help="Start from a run, or from library weights.")] = None,
    resume: Annotated[str | None, Option(metavar="RUN", help="Continue an interrupted run exactly.")] = None,
    accelerator: Accelerator = None,
    config: Config = None,
) -> Answer:
    """Learn an encoder from data without labels."""
    if source is not None and re.match(r"[\w.-]+=", source) and not Path(source).exists():
        settings, source = [source, *(settings or ())], None  # the first word may be a setting
    values = given(locals())
    if not {"source", "resume"} & values.keys():
        raise LabelfreeError("No source was given.", "Name a folder or a file: labelfree pretrain photos/")
    from labelfree.training.pretrain import pretrain

    run = pretrain(**values)
    keys = ("state", "steps", "samples", "seconds", "samples_per_second", "health")
    answer: Answer = {"run": str(run.path)} | {key: run.info[key] for key in keys}
    answer["steps"] = run.info["step"]
    return answer | ({"exit_code": INTERRUPTED} if run.state == "stopped" else {})


@verb("runs/photos --train labelled/ --test held-out/ --label folder --budgets 1%,10%,100%")
def evaluate(
    run: RunPath,
    train: Train = None,
    label: Label = None,
    settings: Words = None,
    test: Annotated[
        str | None, Option(metavar="SOURCE", help="Labelled data to score on; a fifth of --train if absent.")
    ] = None,
    budgets: Annotated[
        str | None, Option(metavar="B,B", help="How many labels: 1%, 5/class, 200; 1%,10%,100% if absent.")
    ] = None,
    protocols: Annotated[str | None, Option(metavar="P,P", help="knn, linear, finetune; all if absent.")] = None,
    baselines: Annotated[
        str | None, Option(metavar="B,B", help="scratch, random, raw, or none; all if absent.")
    ] = None,
    seeds: Annotated[int | None, Option(metavar="N", help="Repetitions with other labels; 3 if absent.")] = None,
    group: Group = None,
    metric: Annotated[
        str | None, Option(metavar="M", help="accuracy, balanced_accuracy, macro_f1, average_precision, roc_auc.")
    ] = None,
    seed: Annotated[int | None, Option(help="Same seed, same labels and weights.")] = None,
    time_limit: TimeLimit = None,
    accelerator: Accelerator = None,
    config: Config = None,
) -> Answer:
    """Prove what a run was worth, with few labels.

    The frozen and the fine-tuned encoder stand beside the same network from scratch, a random one and raw features.
    """
    values = given(locals(), "train", "label")
    from labelfree.run import Run

    return _show(Run(values.pop("run")).evaluate(**values))


def _show(evaluation: Evaluation) -> Answer:
    """Print what was found; the keys of the answer are documented in docs/json.md."""
    print(evaluation)
    return evaluation.to_dict() | {"file": str(evaluation.path)}


@verb("runs/photos --train labelled/ --label folder --out models/photos")
def finetune(
    run: RunPath,
    train: Train = None,
    label: Label = None,
    out: Annotated[str | None, Option("--out", metavar="MODEL", help="Folder for the model.  [required]")] = None,
    settings: Words = None,
    budget: Annotated[str | None, Option(metavar="B", help="Use only so many labels: 10%, 5/class or 200.")] = None,
    group: Group = None,
    seed: Annotated[int | None, Option(help="Same seed, same model.")] = None,
    time_limit: TimeLimit = None,
    accelerator: Accelerator = None,
    config: Config = None,
    force: Annotated[bool, Option("--force", help="Replace the folder of another model; never another one.")] = False,
) -> Answer:
    """Train a classifier that starts from a run's encoder."""
    values = given(locals(), "train", "label", "out")
    from labelfree.run import Run

    model = Run(values.pop("run")).finetune(**values)
    return {"model": str(model.path), "classes": list(model.classes), "validation": model.info["validation"]}


@verb("models/photos new-photos/ --out answers.csv")
def predict(
    model: Annotated[str, Argument(metavar="MODEL", help="The folder that `labelfree finetune` wrote.")],
    source: Annotated[str, Argument(metavar="SOURCE", help="Data to classify.")],
    out: Annotated[str, Option("--out", metavar="FILE", help="Table to write: .csv, .parquet or .jsonl.")],
    probabilities: Annotated[bool, Option("--probabilities", help="Also write those of all classes.")] = False,
    accelerator: Accelerator = None,
    force: Force = False,
) -> Answer:
    """Classify new data with a fine-tuned model.

    A row each; prediction and confidence of a sample that cannot be read are empty.
    """
    from labelfree.tasks.predict import predict
    from labelfree.training.logs import counted

    count, unreadable = predict(model, source, out, force, probabilities, accelerator or "auto")
    print(f"{counted(count, 'prediction')} in '{out}'{_left_empty(unreadable)}.")
    return {"out": out, "count": count, "unreadable": unreadable}


def _left_empty(unreadable: int) -> str:
    samples = "sample is" if unreadable == 1 else "samples are"
    return f"; {unreadable:,} unreadable {samples} left empty" if unreadable else ""


@verb("runs/photos photos/ --out features.parquet")
def embed(
    run: Annotated[str, Argument(metavar="RUN|MODEL", help="A run, or the folder that `labelfree finetune` wrote.")],
    source: Annotated[str, Argument(metavar="SOURCE", help="Data to embed.")],
    out: Annotated[str, Option("--out", metavar="FILE", help="File to write: .parquet, .csv or .npy.")],
    accelerator: Accelerator = None,
    force: Force = False,
) -> Answer:
    """Write the features of every sample.

    A row each; the features of a sample that cannot be read are empty (in .npy, NaN).
    """
    from labelfree.run import load
    from labelfree.tasks.embed import write_embeddings
    from labelfree.training.logs import counted

    trained = load(run)
    count, unreadable = write_embeddings(trained, source, out, force, accelerator=accelerator or "auto")
    dim = trained.encoder.dim
    print(f"{counted(count, 'vector')} of {dim} numbers in '{out}'{_left_empty(unreadable)}.")
    return {"out": out, "count": count, "unreadable": unreadable, "dim": dim}


@verb("runs/payments new-payments.parquet --out strange.csv")
def anomalies(
    run: RunPath,
    source: Annotated[str, Argument(metavar="SOURCE", help="Data to look at.")],
    out: Annotated[str, Option("--out", metavar="FILE", help="Table to write: .csv, .parquet or .jsonl.")],
    reference: Annotated[
        str | None, Option(metavar="SOURCE", help="What is ordinary; the source of the pretraining if absent.")
    ] = None,
    how: Annotated[str, Option(metavar="H", help="distance (from the mean) or neighbours.")] = "distance",
    accelerator: Accelerator = None,
    force: Force = False,
) -> Answer:
    """Find what is strange, without labels.

    Writes a score for every sample, and the share of the reference that is less strange.
    """
    from labelfree.run import Run

    writable(out, force, TABLES)
    found = Run(run).anomalies(source, reference, how=how, accelerator=accelerator or "auto")
    found.write(out, force)
    worst = found.strangest(10)
    rows = [[found.names[place], f"{found.score[place]:.4g}", f"{found.share[place]:.2%}"] for place in worst]
    table(["strangest", "score", "stranger than"], rows)
    print(f"{len(found.names):,} scores are in '{out}'.")
    return {"out": out, "count": len(found.names), "strangest": [found.names[place] for place in worst]}


@verb("runs/captioned held-out/ --label folder --prompt 'a {}'", "runs/captioned photos/ --classes cat,dog --out x.csv")
def zeroshot(
    run: RunPath,
    source: Annotated[str, Argument(metavar="SOURCE", help="Data to name.")],
    label: Annotated[
        str | None, Option("--label", metavar="NAME", help="Column of the true classes, to score with.")
    ] = None,
    classes: Annotated[str | None, Option(metavar="C,C", help="The classes; those of the label if absent.")] = None,
    prompt: Annotated[
        list[str] | None, Option(metavar="TEXT", help="A sentence about a class, {} being its name; may be repeated.")
    ] = None,
    out: Annotated[str | None, Option("--out", metavar="FILE", help="Table: .csv, .parquet or .jsonl.")] = None,
    accelerator: Accelerator = None,
    force: Force = False,
) -> Answer:
    """Name data by classes given in words; nothing is trained.

    Needs a run on pairs of texts and something else.
    """
    from labelfree.run import Run
    from labelfree.settings import listed

    if label is None and out is None:
        raise LabelfreeError("There is nothing to do.", "Give --label to score the guesses, or --out to write them.")
    if out is not None:
        writable(out, force, TABLES)
    named = {"classes": listed(classes or ""), "prompts": prompt or ["{}"]}
    found = Run(run).zero_shot(source, label, **named, accelerator=accelerator or "auto")
    if out is not None:
        found.write(out, force)
        print(f"{len(found.names):,} names are in '{out}'.")
    if found.accuracy is not None:
        score = found.accuracy
        print(
            f"Accuracy {score.value:.3f} ({score.low:.3f} … {score.high:.3f}) on {score.count:,} samples of "
            f"{len(found.classes)} classes; balanced {found.balanced_accuracy:.3f}, commonest {found.majority:.3f}."
        )
    return found.to_dict() | {"count": len(found.names), "out": out}


@verb("runs/captioned held-out.csv")
def retrieve(
    run: RunPath,
    source: Annotated[str, Argument(metavar="SOURCE", help="Pairs that the run has not seen.")],
    at: Annotated[str, Option(metavar="K,K", help="How many of the nearest count as found.")] = "1,5,10",
    accelerator: Accelerator = None,
) -> Answer:
    """Find each side of a row by the others, among all rows."""
    from labelfree.run import Run
    from labelfree.settings import listed

    if not all(word.isdigit() and int(word) for word in listed(at)):
        raise LabelfreeError(f"--at {at} are no numbers above 0.", "Write for instance --at 1,5,10.")
    found = Run(run).retrieve(source, [int(word) for word in listed(at)], accelerator=accelerator or "auto")
    for way in found:
        shares = [f"{s.value:.3f} ({s.low:.3f} … {s.high:.3f})" for s in way.recall.values()]
        rows = [[f"R@{k}", share, f"{way.chance[k]:.3f}"] for k, share in zip(way.recall, shares, strict=True)]
        count = next(iter(way.recall.values())).count
        print(f"{way.query} → {way.key}: {count:,} among {way.keys:,}, median rank {way.median_rank:g}")
        table(["", "recall (95% interval)", "chance"], rows)
    return {"directions": [way.to_dict() for way in found]}


@verb('runs/reviews --prompt "the film was" --tokens 200 --temperature 0.8 --top-p 0.95')
def generate(
    run: RunPath,
    prompt: Annotated[str, Option(metavar="TEXT", help="How the text begins.")] = "",
    tokens: Annotated[int, Option(metavar="N", help="Tokens to write at most.")] = 200,
    temperature: Annotated[float, Option(help="Below 1 for likelier words, 0 for always the likeliest.")] = 0.8,
    top_p: Annotated[float, Option(help="Draw among the likeliest tokens that have this probability.")] = 0.95,
    seed: Annotated[int, Option(help="Same seed, same text.")] = 0,
    accelerator: Accelerator = None,
) -> Answer:
    """Write text with a run of `--method next` on text or bytes."""
    from labelfree.run import Run

    text = Run(run).generate(
        prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, accelerator=accelerator or "auto"
    )
    print(text)
    return {"text": text}


@verb("runs/sensors sensors.csv --steps 24 --out next.csv")
def forecast(
    run: RunPath,
    source: Annotated[str, Argument(metavar="SOURCE", help="Series to continue.")],
    steps: Annotated[int, Option(metavar="N", help="Steps after the end of each recording.")],
    out: Annotated[str, Option("--out", metavar="FILE", help="Table to write: .csv, .parquet or .jsonl.")],
    accelerator: Accelerator = None,
    force: Force = False,
) -> Answer:
    """Continue series with a run of `--method next`."""
    from labelfree.run import Run
    from labelfree.training.logs import counted

    writable(out, force, TABLES)
    found = Run(run).forecast(source, steps, accelerator=accelerator or "auto")
    found.write(out, force)
    count = len(found.names)
    print(f"{counted(steps, 'step')} after each of {counted(count, 'recording')} in '{out}'.")
    return {"out": out, "count": count, "steps": steps}


@verb("runs/photos")
def report(run: RunPath) -> Answer:
    """Write report.html of a run.

    It holds results, training and health curves, a map of the features, nearest neighbours and all settings.
    """
    from labelfree.run import Run

    path = Run(run).report()
    print(f"The report is in '{path}'.")
    return {"report": str(path)}


@verb("photos/ --out photos.html", "train/ --against test/ --label folder", "sensors.csv --run runs/sensors")
def doctor(
    source: Annotated[str, Argument(metavar="SOURCE", help="Data to look at.")],
    settings: Words = None,
    modality: Annotated[str | None, Option(metavar="K", help="Kind of data; guessed from the source.")] = None,
    against: Annotated[str | None, Option(metavar="SOURCE", help="Data that ought to share no sample with it.")] = None,
    label: Annotated[str | None, Option(metavar="NAME", help="Column of labels: counts, copies that disagree.")] = None,
    run: Annotated[str | None, Option(metavar="RUN", help="Find outliers in the features of this run.")] = None,
    limit: Annotated[int | None, Option(metavar="N", help="Look at so many samples; all if absent.")] = None,
    near: Annotated[
        float | None, Option(help="Near copies differ by less than this share of what neighbours do; 0.15 if absent.")
    ] = None,
    threshold: Annotated[
        float | None, Option(help="Share of faulty samples above which the exit code is 1; 0.05 if absent.")
    ] = None,
    accelerator: Accelerator = None,
    out: Annotated[str | None, Option(metavar="FILE", help="Page to write, .html, with .json beside it.")] = None,
    force: Force = False,
) -> Answer:
    """Find what is wrong with data, before training on it.

    Unreadable, empty, constant, copies and near copies, sizes, missing values, labels that disagree, outliers.
    """
    values = given(locals())
    from labelfree.tasks import doctor as task

    out, force = values.pop("out", None), values.pop("force", False)
    if out is not None:
        task.page_files(out, force, values["source"])
    checkup = task.doctor(**values)
    if rows := checkup.rows():
        table(["check", "samples", "share", "for instance"], rows)
    task.show(checkup, print)
    if out is not None:
        checkup.write(out, force)
        print(f"The page is in '{out}'.")
    return checkup.to_dict() | ({"exit_code": FAILED} if checkup.failed else {})


class Listed(StrEnum):
    """What can be listed."""

    modalities = "modalities"
    encoders = "encoders"
    methods = "methods"
    settings = "settings"


@verb("methods", "encoders --json", "settings simclr", "settings image")
def list_(
    what: Annotated[Listed | None, Argument(help="modalities, encoders, methods or settings.")] = None,
    of: Annotated[
        str | None, Argument(metavar="[METHOD|KIND]", help="Whose settings; training or finetune too. All if absent.")
    ] = None,
) -> Answer:
    """Show the kinds of data, encoders, methods and settings."""
    if what is None:
        print("\n".join(f"labelfree list {each.value}" for each in Listed))
        return {"lists": [each.value for each in Listed]}
    from labelfree import catalogue

    if of is not None and what is not Listed.settings:
        raise LabelfreeError(f"'{of}' has no {what.value}.", f"Write labelfree list {what.value}.")
    entries = catalogue.settings(of) if what is Listed.settings else getattr(catalogue, what.value)()
    shown = [key for key in entries[0] if key != "about" or what is Listed.settings]
    table(shown, [[", ".join(e[key]) if isinstance(e[key], list) else e[key] for key in shown] for e in entries])
    return {what.value: entries}


@verb("", "--out digits-demo --json")
def demo(
    out: Annotated[
        str | None, Option(metavar="FOLDER", help="Where to put it; a new labelfree-demo if absent.")
    ] = None,
) -> Answer:
    """See it work on handwritten digits.

    Pretrains without labels, evaluates beside baselines, writes report.html; a few minutes on two cores.
    """
    from labelfree.demo import demo

    run, evaluation, path = demo(out)
    answer = _show(evaluation)
    print(f"The report is in '{path}'.")
    return answer | {"run": str(run.path), "report": str(path)}


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        import labelfree

        print(f"labelfree {labelfree.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code, as docs/json.md lists them. A bug in Labelfree shows its traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # the process is this command's own: what a cluster sends ends it as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if getattr(sys.stdout, "errors", "") == "strict":  # a pipe of Windows knows no Greek
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return int(app(words, prog_name="labelfree", standalone_mode=False) or 0)
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "labelfree")
        failure = LabelfreeError(
            _sentence(error.format_message()), _as_setting(error, words) or f"See `{command} --help`."
        )
    except LabelfreeError as error:
        failure = error
    except Exception as error:
        mendable = machine_trouble(error)
        if mendable is None:
            traceback.print_exc()
            return BUG
        failure = mendable
    warn(failure.problem, failure.remedy)
    if "--json" in words:
        print_json({"error": failure.problem, "remedy": failure.remedy})
    return MISTAKE


def _as_setting(error: typer.TyperException, words: Sequence[str]) -> str:
    """How to write an option that does not exist and is like no other, if the verb takes settings; or nothing."""
    name, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    takes = context is not None and any(parameter.name == "settings" for parameter in context.command.params)
    if not name.startswith("--") or not takes or getattr(error, "possibilities", None):
        return ""
    given = next(word for word in words if word.split("=")[0] == name)
    following = words[words.index(given) + 1 :]
    value = given.partition("=")[2] or (following[0] if following else "VALUE")
    return f"If it is a setting, write {name[2:].replace('-', '_')}={value}."


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."
