"""What a person sees while it trains, lengths of time in words, and the files of numbers that stay."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from labelfree.errors import LabelfreeError
from labelfree.files import json_text, read_json_lines, write_bytes, write_table

console = Console(stderr=True, highlight=False)
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def say(words: str, style: str | None = None) -> None:
    """Print for the person, on standard error, so that standard output stays clean for scripts."""
    console.print(words, style=style, markup=False, soft_wrap=True)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said meanwhile, and no bar is drawn."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def counted(number: int, what: str) -> str:
    """ "1 sample", "1,200 samples"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def volume(size: float) -> str:
    """Bytes in words: "38 kB", "1,204.5 MB"."""
    return f"{size / 1e3:,.0f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "3 min 20 s", "2 h 5 min"."""
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def parse_duration(value: str | float) -> float:
    """Seconds in "90", "45s", "10m", "1h30m", "2h".

    Raises:
        LabelfreeError: not a duration, or not above 0.
    """
    text = str(value).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([a-z]*)", "", text).strip()
    if not parts or rest or any(unit not in _UNITS for _, unit in parts):
        raise LabelfreeError(f"'{value}' is not a length of time.", "Write 90s, 10m or 2h.")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise LabelfreeError(f"A time limit of '{value}' leaves no time.", "Write 90s, 10m or 2h.")
    return seconds


class MetricsFile:
    """`metrics.jsonl`: a line a logged step; on resuming, lines after the checkpoint are dropped."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        kept = [line for line in read_json_lines(path) if line["step"] <= resume_at] if resume_at else []
        write_bytes(path, "".join(json_text(line) + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json_text(line) + "\n")

    def close(self) -> None:
        self._file.close()


def write_metrics_table(folder: Path) -> None:
    """Write a run's `metrics.csv` from its `metrics.jsonl`, so that it has what came before a training was resumed."""
    lines = read_json_lines(folder / "metrics.jsonl")
    keys = dict.fromkeys(key for line in lines for key in line)
    write_table({key: [line.get(key) for line in lines] for key in keys}, folder / "metrics.csv", force=True)


def check_tensorboard(wanted: bool) -> None:
    """Raises LabelfreeError where TensorBoard is to be logged for and is not installed."""
    if wanted and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise LabelfreeError(
            "Setting tensorboard=true needs TensorBoard, which is not installed.",
            "Install it: pip install tensorboard.",
        )


def tensorboard_logger(folder: Path) -> Any:
    """Lightning Fabric's logger for TensorBoard."""
    from lightning_fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="")


class Meter:
    """Progress: a bar with loss, health, speed and time left on a terminal; plain lines elsewhere.

    Attributes:
        steps: of the whole training.
    """

    def __init__(self, steps: int, start: int, batch_size: int) -> None:
        self.steps, self._start, self._batch_size = steps, start, batch_size
        self._began = self._spoke = time.perf_counter()
        self._loss = self._rank = ""
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                SpinnerColumn(),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=steps, completed=start)
            self._bar.start()

    def speed(self, done: int) -> float:
        """Samples a second since this process started training."""
        return (done - self._start) * self._batch_size / max(1e-9, time.perf_counter() - self._began)

    def line(self, line: Mapping[str, float]) -> None:
        """Take what was logged."""
        self._loss, self._rank = f"loss {line['loss']:.4g}", f"effective rank {line['effective_rank']:.1f}"

    def step(self, done: int) -> None:
        """`done` steps are done."""
        now = time.perf_counter()
        if self._bar is None and now - self._spoke < 10 and done != self.steps:
            return
        left = (self.steps - done) * self._batch_size / max(1e-9, self.speed(done))
        words = f"{self._loss} · {self._rank} · {self.speed(done):,.0f} samples/s · {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.steps, description=words)
        else:
            self._spoke = now
            say(f"step {done}/{self.steps} · {words}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
