"""What comes next in a series, from a model that predicts the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labelfree import runtime
from labelfree.data.batch import Batch
from labelfree.files import write_table
from labelfree.settings import whole
from labelfree.tasks.embed import lent

if TYPE_CHECKING:
    from labelfree.run import Run


@dataclass(frozen=True)
class Forecast:
    """What is expected to follow each recording of a source.

    Attributes:
        names: of the N recordings.
        channels: names of the C channels.
        values: (N, steps, C) float32, in the units of the source; NaN after a recording without any value.
    """

    names: Sequence[str]
    channels: Sequence[str]
    values: np.ndarray

    def write(self, out: str | Path, force: bool = False) -> Path:
        """A table with a row a step: `name`, `step` (1 is the first after the end), and the channels.

        A channel that is itself called `name` or `step` is written as `channel:name` or `channel:step`.

        Raises:
            LabelfreeError: another kind of file than .csv, .parquet, .jsonl, or one that exists.
        """
        count, steps = self.values.shape[:2]
        own: dict[str, Any] = {
            "name": np.repeat(np.array(self.names, dtype=object), steps),
            "step": np.tile(np.arange(1, steps + 1), count),
        }
        channels = [f"channel:{name}" if name in own else name for name in self.channels]
        return write_table(own | {name: self.values[..., c].reshape(-1) for c, name in enumerate(channels)}, out, force)


@runtime.plain_torch()
@torch.no_grad()
def forecast(run: Run, source: Any, steps: int, batch_size: int = 256, accelerator: str = "auto") -> Forecast:
    """Continue every recording of `source` by as much as its model predicts at once, and so on, each prediction being
    taken for true by the next.

    The model sees the end of a recording, as much of it as its training samples were long.

    Args:
        run: of series, pretrained with `next`.
        source: recordings to continue.
        steps: how many are forecast after each.
        batch_size: recordings a forward pass.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: numbers out of range.
        Refusal: the run does not predict what comes next, or its kind of data cannot be forecast.
    """
    where = runtime.checked_device(accelerator)
    steps, batch_size = whole("steps", steps, 1), whole("batch_size", batch_size, 1)
    modality, objective = run.modality, run.maker()

    def predict_next(view: Batch) -> Tensor:
        return objective.predict_next(view.to(where)).cpu()

    dataset = modality.open(source)
    names, ends = modality.ends(dataset)
    values = np.full((len(ends), steps, len(dataset.value_names)), np.nan, dtype=np.float32)
    by_length: dict[int, list[int]] = {}
    for place, end in enumerate(ends):
        if not np.isnan(end.data).all():
            by_length.setdefault(len(end.data), []).append(place)
    with lent(objective, where):
        for places in by_length.values():
            for first in range(0, len(places), batch_size):
                some = places[first : first + batch_size]
                values[some] = modality.continued(predict_next, [ends[place] for place in some], steps)
    return Forecast(names, dataset.value_names, values)
