"""Events as they happen: taken in and judged by a trained run, without training it further."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.events import Log, moment
from labelfree.errors import LabelfreeError
from labelfree.settings import whole

if TYPE_CHECKING:
    from labelfree.run import Run


class Stream:
    """What a run of the kind `events` has seen lately, and what it thinks of what comes.

    It begins empty, whatever the run was trained on: `update` it with recent events first. Its memory grows with the
    number of nodes, not with that of events.

    Arguments:
        run: trained with a method that says how unusual a sample is (`future-edge`).
        batch_size: events that are looked at together.

    Raises:
        Refusal: the run is of another kind of data, or its method does not say how unusual a sample is.
    """

    @runtime.plain_torch()
    def __init__(self, run: Run, batch_size: int = 256) -> None:
        self._seen = run.modality.nothing_seen()
        self._batch_size = whole("batch_size", batch_size, 1)
        self._modality, self._objective = run.modality, run.objective()
        self._objective.eval()
        self._objective.encoder.reset()
        self._device = torch.device("cpu")
        self._nodes: dict[Any, int] = {}

    def __len__(self) -> int:
        """Events taken in so far."""
        return self._seen.count

    def update(self, events: Any) -> None:
        """Take in events, which become the history of those that follow.

        Args:
            events: a table or frame with the columns of the training source, or a file of one; in any order.

        Raises:
            LabelfreeError: columns are missing, or events are earlier than those taken in before.
        """
        for part in self._parts(self._read(events, keep=True)):
            self._take_in(part)

    def score(self, events: Any) -> np.ndarray:
        """(N,) float32 how unusual each event is after all that was taken in, higher for stranger ones.

        The events are not taken in, and know nothing of each other. NaN where a row is no event.

        Args:
            events: as for `update`.
        """
        log = self._read(events, keep=False)
        scores = [self._judge(part) for part in self._parts(log)]
        return self._by_row(log, scores)

    def watch(self, events: Any) -> np.ndarray:
        """`score` and `update` in turns, batch by batch: each event is judged after those of the batches before it."""
        log = self._read(events, keep=True)
        scores = []
        for part in self._parts(log):
            scores.append(self._judge(part))
            self._take_in(part)
        return self._by_row(log, scores)

    def _read(self, events: Any, keep: bool) -> Log:
        """Events with the stream's numbers of their nodes, those of new ones only to `keep` where they are taken in."""
        log = self._modality.log(events)
        if log.time[0] < self._seen.clock:
            now, first = moment(self._seen.clock), moment(log.time[0])
            raise LabelfreeError(
                f"The stream has come to time {now}, but these events begin at {first}.",
                "Give events in order, or start a new stream.",
            )
        known, names = self._nodes, [_spelt(name) for name in log.nodes]
        new: dict[Any, int] = {}
        for name in names:
            if name not in known:
                new.setdefault(name, len(known) + len(new))
        numbers = np.array([known[name] if name in known else new[name] for name in names], dtype=np.int64)
        if keep:
            known.update(new)
        return replace(log, ends=numbers[log.ends])

    def _parts(self, log: Log) -> list[Log]:
        cuts = [slice(start, start + self._batch_size) for start in range(0, len(log), self._batch_size)]
        return [replace(log, time=log.time[c], ends=log.ends[c], features=log.features[c]) for c in cuts]

    @runtime.plain_torch()
    @torch.inference_mode()
    def _judge(self, part: Log) -> np.ndarray:
        batch = self._modality.fresh_batch(self._seen, part)
        with runtime.autocast(self._device, "auto"):
            return self._objective.anomaly_score(batch).float().numpy()

    @runtime.plain_torch()
    @torch.inference_mode()
    def _take_in(self, part: Log) -> None:
        if self._objective.encoder.remembers:
            batch = self._modality.fresh_batch(self._seen, part)
            self._objective.encoder.remember(self._modality.prepare(batch))
        self._seen.add(part)

    @staticmethod
    def _by_row(log: Log, scores: list[np.ndarray]) -> np.ndarray:
        found = np.full(len(log) + len(log.unreadable), np.nan, dtype=np.float32)
        found[log.rows] = np.concatenate(scores)
        return found


def _spelt(name: Any) -> Any:
    """A node's name as text: 3, 3.0 and "3" are one node, however the column that it stood in was typed."""
    if isinstance(name, tuple):  # of the second kind
        return tuple(_spelt(part) for part in name)
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(name))
