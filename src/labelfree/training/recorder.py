"""What a run writes while it trains: metrics, checkpoints with the encoder, its state, and what could not be read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from labelfree import distributed
from labelfree.data.batch import Unreadable
from labelfree.encoders.saved import save_encoder
from labelfree.files import json_text, read_json, read_json_lines, write_bytes, write_json
from labelfree.training.checkpoint import save_state
from labelfree.training.job import Job
from labelfree.training.length import Length
from labelfree.training.logs import (
    Meter,
    MetricsFile,
    counted,
    duration,
    say,
    tensorboard_logger,
    write_metrics_table,
)
from labelfree.training.loop import Callbacks, Training, stop_on_signals, train


class Recorder:
    """Everything of a run that is written while it trains; only the first process writes."""

    def __init__(
        self, folder: Path, job: Job, training: Training, fabric: Any, start: int, waited: float = 0.0
    ) -> None:
        self.folder, self.job, self.training, self.fabric, self.start = folder, job, training, fabric, start
        self.first = fabric.global_rank == 0
        self.info = read_json(folder / "run.json") if self.first else {}
        self.earlier = float(self.info.get("seconds", 0.0))
        self.began = time.perf_counter()
        self.length = Length(job.plan, start, self.began - waited)
        self.done = start

    def run(self) -> None:
        settings = self.training.settings
        if self.first:
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.start)
            self.meter = Meter(self.job.plan.steps, self.start, settings.batch_size)
            self.board = tensorboard_logger(self.folder) if settings.tensorboard else None
        tell = Callbacks(self._log, self._save, self._tick, self._warn, self._reckon)
        state = "failed"
        try:
            with stop_on_signals() as request:
                done, _ = train(self.training, self.start, request, tell, self.length.shares)
            state = "finished" if done == self.training.steps else "stopped"
        finally:
            if self.first:
                self.meter.close()
                self.metrics.close()
                if self.board is not None:
                    self.board.finalize(state)
            self._finish(state)
        self.fabric.barrier()

    def _log(self, step: int, line: dict[str, float]) -> None:
        if self.first:
            speed = self.meter.speed(step)
            line = {"step": step, **line, "samples_per_second": round(speed, 2)}
            line["seconds"] = round(line["seconds"] + self.earlier, 3)
            self.metrics.write(line)
            self.meter.line(line)
            if self.board is not None:
                self.board.log_metrics({key: value for key, value in line.items() if key != "step"}, step)

    def _tick(self, step: int) -> None:
        self.done = step
        if self.first:
            self.meter.step(step)

    def _warn(self, words: str) -> None:
        if self.first:
            say(words, "bold red")
            self.info["warnings"].append(words)

    def _reckon(self, step: int) -> int:
        """How many steps the training has: the first process's clock decides for all."""
        before, plan = self.length.plan.steps, self.length.reckon(step)
        mine = torch.tensor(plan.steps if self.first else 0, device=self.fabric.device)
        if self.first and plan.steps != before:
            say(f"  steps = {plan.steps:,}  ({self.length.reason})", "dim")
            self.job.plan = plan
            self.meter.steps = plan.steps
            self.info |= {"steps": plan.steps, "choices": plan.choices, "plan": plan.model_dump(mode="json")}
        return int(distributed.all_sum(mine))

    def _save(self, step: int) -> None:
        """The encoder, which can be used however the run ends, and a checkpoint."""
        plan, objective = self.job.plan, self.training.objective
        modules = dict(objective.named_modules())
        kept = {name: modules[name] for name in objective.keeps if name in modules}
        save_encoder(self.folder / "encoder", objective.product, self.job.modality, plan.encoder, plan.causal, kept)
        save_state(self.folder / "checkpoints", step, objective, self.training.optimizer)
        if self.first:
            self._update("running", step)

    def _update(self, state: str, step: int) -> None:
        seconds = self.earlier + time.perf_counter() - self.began
        samples = step * self.training.settings.batch_size
        self.info |= {"state": state, "step": step, "samples": samples, "seconds": round(seconds, 3)}
        before = self.info.get("samples_per_second", 0.0)
        self.info["samples_per_second"] = round(self.meter.speed(step), 2) if step > self.start else before
        write_json(self.folder / "run.json", self.info)

    def _finish(self, state: str) -> None:
        # each process knows what it could not read itself; after an error others may not answer any more
        own = list(self.job.quarantine.values())
        bad = own if state == "failed" else distributed.all_lists(own)
        if not self.first:
            return
        last = (read_json_lines(self.folder / "metrics.jsonl") or [{}])[-1]
        self.info["health"] = {key: last.get(key) for key in ("loss", "effective_rank", "feature_std")}
        self._update(state, self.done)
        if state != "failed" and self.training.settings.csv:
            write_metrics_table(self.folder)
        write_quarantine(self.folder / "quarantine.jsonl", bad)
        if state == "finished":
            took = duration(self.info["seconds"])
            say(f"Finished {counted(self.done, 'step')} in {took}: '{self.folder}'.", "bold green")
        elif state == "stopped":
            say(
                f"Stopped at step {self.done:,} of {self.training.steps:,}, all saved. "
                f"Continue: labelfree pretrain --resume {self.folder}"
            )


def write_quarantine(path: Path, bad: list[Unreadable]) -> None:
    """List unreadable samples, each once, beside those that are listed already (before a training was resumed)."""
    seen = {(line["index"], line["name"]): line["reason"] for line in read_json_lines(path)}
    seen |= {(int(item.index), item.name): item.reason for item in bad}
    lines = [json_text({"index": index, "name": name, "reason": seen[index, name]}) for index, name in sorted(seen)]
    write_bytes(path, "".join(line + "\n" for line in lines).encode())
