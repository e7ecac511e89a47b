"""How long a training is: so many steps, or as many as fit a time limit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Choice
from labelfree.settings import whole
from labelfree.training.logs import duration, parse_duration
from labelfree.training.plan import DEFAULT_LIMIT, Plan

#: With a time limit, passes over the data beyond which more training is not planned (the length of FACTS' recipes).
MOST_EPOCHS = 1000
#: Shares of what remains of a timed training after which its steps are reckoned anew, one after the other.
SHARES = (0.0, 0.05, 0.2, 0.4, 0.5, 0.5)


def read_length(epochs: Any, steps: Any, time_limit: float | str | None) -> dict[str, Any]:
    """The length that a user gave as `epochs`, `steps` or `seconds`; the other two are None.

    Raises:
        LabelfreeError: several were given, or one that is no length.
    """
    given = {"epochs": epochs, "steps": steps, "time limit": time_limit}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise LabelfreeError(f"Both {' and '.join(names)} were given.", "Give one of them.")
    if "epochs" in names:
        return {"epochs": whole("epochs", epochs, 1), "steps": None, "seconds": None}
    if "steps" in names:
        return {"epochs": None, "steps": whole("steps", steps, 1), "seconds": None}
    limit = DEFAULT_LIMIT if time_limit is None else time_limit
    return {"epochs": None, "steps": None, "seconds": parse_duration(limit)}


def resolve_length(
    plan: Plan,
    epoch_steps: int,
    length: Mapping[str, Any],
    step_seconds: float,
    left: float | None,
    enough: int | None = None,
) -> Plan:
    """Turn epochs or time into steps (at most `enough` of them), and choose the intervals of logs and checkpoints."""
    settings, choices = plan.training, list(plan.choices)
    most = None
    if left is None:
        steps = length["steps"] or length["epochs"] * epoch_steps
    else:
        most, why = MOST_EPOCHS * epoch_steps, f"{MOST_EPOCHS} epochs; more rarely helps"
        if enough is not None and enough < most:
            most, why = enough, f"what {plan.method} needs on a source of this size"
        steps = max(1, min(int(left / step_seconds), most))
        reason = f"{duration(left)} at {step_seconds:.3g} s a step" if steps < most else why
        choices.append(Choice("steps", steps, reason).record())
    log_every = max(1, min(50, steps // 100)) if settings.log_every == "auto" else settings.log_every
    save_every = (
        max(1, min(steps, round(60 / step_seconds)))
        if settings.checkpoint_every == "auto"
        else settings.checkpoint_every
    )
    training = settings.model_copy(update={"log_every": log_every, "checkpoint_every": save_every})
    update = {"steps": steps, "time_left": left, "most_steps": most, "training": training, "choices": choices}
    return plan.model_copy(update=update)


class Length:
    """The steps of a training. Where a time limit sets them, they are reckoned anew a few times on the way.

    Trial steps say little where other programs come and go: without this a training would take half of its time, or
    twice of it. A training that is resumed keeps the steps it has.

    Arguments:
        plan: with the time that was left when it was made.
        start: the step that the training begins with.
        began: `time.perf_counter()` of that moment, before processes were started.

    Attributes:
        shares: of the steps that remain, after which to ask `reckon`; the first time only the pace begins to be
            measured, since the first steps do what later ones need not (compiling, starting workers).
        reason: for the number of steps, where it has changed.
    """

    def __init__(self, plan: Plan, start: int, began: float) -> None:
        self.plan = plan
        self.shares = SHARES if plan.time_left is not None and start == 0 else ()
        self._began = began
        self._last: tuple[int, float] | None = None
        self.reason = ""

    def reckon(self, done: int) -> Plan:
        """The plan with as many steps as fit the time that is left, at the pace since the last time."""
        assert self.plan.time_left is not None
        assert self.plan.most_steps is not None
        last, spent = self._last, time.perf_counter() - self._began
        self._last = done, spent
        if last is None:
            return self.plan
        pace = (spent - last[1]) / (done - last[0])
        left = self.plan.time_left - spent
        steps = max(done + 1, min(done + int(left / pace), self.plan.most_steps))
        if steps != self.plan.steps:
            self.reason = f"{duration(self.plan.time_left)}, and {pace:.3g} s a step after {done:,} of them"
            record = Choice("steps", steps, self.reason).record()
            choices = [record if choice["key"] == "steps" else choice for choice in self.plan.choices]
            self.plan = self.plan.model_copy(update={"steps": steps, "choices": choices})
        return self.plan
