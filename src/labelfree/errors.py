"""The one exception that users meet."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable
from contextlib import suppress

#: What keeps a script from beginning anew in every process that it starts.
GUARD = '`if __name__ == "__main__":` around what is to happen once'


class LabelfreeError(Exception):
    """A mistake that the user can mend.

    The message is one sentence that names the thing, what was expected and what was found; `remedy` says what to do.
    The command line prints both and exits with code 2.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy


class Refusal(LabelfreeError):
    """An objective, a modality and an encoder that do not fit together."""


class SeenByEncoder(LabelfreeError):
    """A column that is a feature, where a label was asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`, as an ending for a remedy ("Did you mean 'x'?"), or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else ""


def reason_of(error: BaseException) -> str:
    """What an error of a library says, in one line without its full stop."""
    words = str(getattr(error, "strerror", None) or error).strip()
    return words.splitlines()[0].rstrip(".") if words else type(error).__name__


def death(code: int) -> tuple[str, str]:
    """What became of a process with this exit code (a signal's is its number below 0), as the end of a sentence, and a
    remedy.
    """
    if code >= 0:
        return f"ended with code {code}", f"What it printed says why; a script that trains needs {GUARD}."
    name = f"signal {-code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
    remedy = "If memory ran out (also that of /dev/shm), set a smaller batch_size or workers=0."
    return f"was killed by {name}", "" if name in ("SIGINT", "SIGTERM") else remedy


def machine_trouble(error: Exception) -> LabelfreeError | None:
    """The sentence for a full disk, a file that may not be written, or too little memory; None for anything else."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" while writing '{error.filename}'" if error.filename else ""
        return LabelfreeError(f"The disk is full{place}.", "Free space on it.")
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError) and error.filename:
        return LabelfreeError(f"'{error.filename}' cannot be used: {error.strerror}.", "Name another place.")
    starved = ("not enough memory", "can't allocate memory", "out of memory")
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in starved))
    ):
        return LabelfreeError(
            "Memory ran out.",
            "End other programs, or ask for less: a smaller batch_size or encoder where there is one to choose, else "
            "fewer or smaller samples.",
        )
    return None
