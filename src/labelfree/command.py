"""What every verb of the command line shares: how it is declared, what it is given, and how it answers."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from labelfree.errors import LabelfreeError
from labelfree.files import all_there, json_text

app = typer.Typer(
    name="labelfree",
    help="Pretrain an encoder on unlabelled data, prove what it was worth, use it.",
    add_completion=False,
    rich_markup_mode=None,  # the plain help is three times as fast
    pretty_exceptions_enable=False,
)

Answer = dict[str, Any]
Json = Annotated[bool, Option("--json", help="Answer with one JSON object, the last line on standard output.")]
RunPath = Annotated[str, Argument(metavar="RUN", help="The folder that `labelfree pretrain` wrote.")]
# what a file may give, Typer must not demand: see `given`
Train = Annotated[str | None, Option("--train", metavar="SOURCE", help="Labelled data to learn from.  [required]")]
Label = Annotated[
    str | None,
    Option(
        "--label", metavar="NAME", help="Where the label is: a column, or `folder` for a folder's name.  [required]"
    ),
]
Words = Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Settings; see docs/settings.md.")]
Group = Annotated[str | None, Option("--group", metavar="NAME", help="Column whose values are kept together.")]
Force = Annotated[bool, Option("--force", help="Replace what is there.")]
TimeLimit = Annotated[str | None, Option("--time-limit", metavar="10m", help="How long it may take: 90s, 10m, 2h.")]
Accelerator = Annotated[
    str | None, Option("--accelerator", metavar="A", help="Where to compute: cpu, cuda, mps; auto if absent.")
]
Config = Annotated[Path | None, Option("--config", metavar="FILE", help="Options and settings as YAML or JSON.")]

FAILED, MISTAKE, BUG, INTERRUPTED = 1, 2, 3, 130
#: Arguments that are written without their name.
POSITIONAL = ("source", "run")
#: Options that are settings too: they may be written either way.
SETTINGS = ("accelerator",)
#: Arguments that name data, which must be there.
SOURCES = ("source", "train", "test", "against")


def verb(*examples: str) -> Callable[[Callable[..., Answer]], Callable[..., int]]:
    """Make a command of a function that prints for people and returns the object for scripts; adds `--json`."""

    def decorate(function: Callable[..., Answer]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(json: bool, **arguments: Any) -> int:
            try:
                if "settings" not in arguments:
                    all_there(arguments.get(name) for name in SOURCES)
                with _streams(json):
                    answer = function(**arguments)
            except KeyboardInterrupt:
                warn("Stopped.", "")
                return INTERRUPTED
            code = answer.pop("exit_code", 0)
            if json:
                print_json(answer)
            return code

        signature = inspect.signature(function, eval_str=True)
        flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
        parameters = [*signature.parameters.values(), flag]
        vars(command)["__signature__"] = signature.replace(parameters=parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        name = function.__name__.rstrip("_")
        lines = "".join(f"\n  labelfree {name} {example}" for example in examples)
        app.command(name, help=f"{inspect.cleandoc(function.__doc__ or '')}\n\n\b\nExamples:{lines}")(command)
        return command

    return decorate


@contextmanager
def _streams(json: bool) -> Iterator[None]:
    """With `json`, all that is printed meanwhile, also by child processes, goes to standard error."""
    if not json:
        yield
        return
    from contextlib import redirect_stdout

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(answer: Answer) -> None:
    """One line on standard output; where torchrun or SLURM started several processes, only the first one speaks."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID") if "WORLD_SIZE" in os.environ else ("SLURM_PROCID",)
    if all(os.environ.get(name, "0") == "0" for name in ranks):
        print(json_text(answer), flush=True)


def given(arguments: dict[str, Any], *required: str) -> dict[str, Any]:
    """Options and settings of a verb by name, where they were given: those of the file, over them those of the line.

    Args:
        arguments: the verb's own, of which `settings` are words and `config` names a file.
        required: options without which the verb has nothing to do.

    Raises:
        LabelfreeError: the file cannot be read, a setting is really an option, or an option is missing.
    """
    from labelfree.settings import parse_assignments

    words, config = arguments.pop("settings"), arguments.pop("config", None)
    settings = parse_assignments(words or ())
    for key, value in settings.items():
        if key in arguments and key not in SETTINGS:
            how = "before the settings" if key in POSITIONAL else f"as --{key.replace('_', '-')} {value}"
            raise LabelfreeError(f"'{key}' is no setting.", f"Write it {how}.")
    line = {key: value for key, value in arguments.items() if value is not None and value is not False}
    values = (_read_config(config) if config else {}) | line | settings
    for name in required:
        if values.get(name) is None:
            raise LabelfreeError(f"Missing option '--{name}'.", "Write it on the command line or in the --config file.")
    all_there(values.get(name) for name in SOURCES)
    return values


def _read_config(path: Path) -> dict[str, Any]:
    """A YAML file (JSON is YAML too) of options and settings; `image: {size: 32}` is the setting image.size."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabelfreeError(
            f"'{path}' cannot be read: {error.strerror}.", "--config takes a YAML or JSON file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise LabelfreeError(f"'{path}' is not YAML or JSON: {reason}.", "Write `key: value`, one a line.") from None
    if not isinstance(content, dict):
        raise LabelfreeError(f"'{path}' does not hold settings.", "Write `key: value`, one a line.")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        parts = {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {str(key): value}
        flat |= {name.replace("-", "_"): part for name, part in parts.items()}
    return flat


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=box.SIMPLE)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # which may have brackets and colons of its own
    # nothing is cut off for those who read it with a program
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def warn(problem: str, remedy: str) -> None:
    print(f"{problem} {remedy}".strip(), file=sys.stderr, flush=True)
