"""The run directory: what a pretraining leaves, and everything that starts from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import read_json, read_json_lines, standing

if TYPE_CHECKING:
    import torch

    from labelfree.data.dataset import Dataset
    from labelfree.encoders.base import Encoder
    from labelfree.evaluation.protocol import Evaluation
    from labelfree.modalities.base import Modality
    from labelfree.objectives.base import Objective
    from labelfree.tasks.anomalies import Anomalies
    from labelfree.tasks.finetune import Model
    from labelfree.tasks.forecast import Forecast
    from labelfree.tasks.generate import Perplexity
    from labelfree.tasks.sides import Direction, ZeroShot
    from labelfree.tasks.stream import Stream


class Run:
    """A finished or unfinished pretraining on disk.

    Attributes:
        path: its folder, from the root on: the working directory may change.
        info: the contents of `run.json`.
        own_encoder: the user's own network, where one was given.
    """

    def __init__(self, path: str | Path, encoder: torch.nn.Module | None = None) -> None:
        self.path = Path(path).expanduser().absolute()
        if not self.path.is_dir():
            raise LabelfreeError(f"There is no run at '{path}'.", "Name the folder that `labelfree pretrain` wrote.")
        self.info: dict[str, Any] = read_json(self.path / "run.json")
        self.own_encoder = encoder
        self._maker: Objective | None = None
        self._loaded: tuple[Modality, Encoder] | None = None

    def _load(self) -> tuple[Modality, Encoder]:
        if self._loaded is None:
            from labelfree.encoders.saved import load_encoder
            from labelfree.training.logs import say

            if (state := self.info.get("state")) in ("stopped", "running", "failed"):
                goes_on = f"It goes on with `labelfree pretrain --resume {self.path}`."
                if not self.encoder_folder.exists():
                    raise LabelfreeError(f"'{self.path}' ended before its first checkpoint ({state}).", goes_on)
                say(f"Note: this run is not finished ({state} at step {self.info['step']:,}). {goes_on}")
            self._loaded = load_encoder(self.encoder_folder, self.own_encoder)
        return self._loaded

    @property
    def encoder_folder(self) -> Path:
        """Where its encoder lies; the last one, where a training was killed while it put a new one there."""
        return standing(self.path / "encoder")

    @property
    def modality(self) -> Modality:
        """The kind of data, with the statistics of the training source."""
        return self._load()[0]

    @property
    def encoder(self) -> Encoder:
        """The pretrained encoder, in evaluation mode."""
        return self._load()[1]

    def bare_objective(self) -> Objective:
        """The objective around a copy of the run's encoder, with heads that have learnt nothing."""
        from labelfree.training.plan import Plan

        plan = Plan.of_run(self.path, self.info)
        cls = plan.objective_class()
        settings = cls.settings_class.read(plan.objective_settings, cls.name)
        return cls(copy.deepcopy(self.encoder), self.modality, settings)

    def maker(self) -> Objective:
        """The objective with the heads that are kept because they make something: text, values, pictures.

        Raises:
            LabelfreeError: the method keeps none.
        """
        from labelfree.tensors import read_tensors

        if self._maker is None:
            folder = self.encoder_folder
            kept = read_json(folder / "config.json").get("heads")
            if kept is None:
                raise Refusal(
                    f"Runs of '{self.info['method']}' keep no head that could make anything.",
                    "Pretrain with next to continue texts and series, with vae to make samples.",
                )
            objective = self.bare_objective()
            objective.load_state_dict(read_tensors(folder / "heads.safetensors", kept["sha256"]), strict=False)
            self._maker = objective.eval()
        return self._maker

    def objective(self) -> Objective:
        """The objective as it was trained, with its heads, around a copy of the run's encoder.

        Raises:
            LabelfreeError: its checkpoint is no longer there.
        """
        from labelfree.training.checkpoint import load_module, newest_state

        objective = self.bare_objective()
        newest = newest_state(self.path / "checkpoints")
        if newest is None:
            raise LabelfreeError(f"'{self.path}' has no checkpoint, and so no heads.", "Copy the whole folder.")
        load_module(newest, objective)
        return objective.eval()

    def stream(self, batch_size: int = 256) -> Stream:
        """Judge events as they happen: see `labelfree.tasks.stream.Stream`."""
        from labelfree.tasks.stream import Stream

        return Stream(self, batch_size)

    @property
    def state(self) -> str:
        """ "finished", "stopped", "running" or "failed"."""
        return str(self.info["state"])

    def metrics(self) -> list[dict[str, Any]]:
        """Logged steps, oldest first."""
        return read_json_lines(self.path / "metrics.jsonl")

    def open(self, source: Any) -> Dataset:
        """Open another source as the run's kind of data."""
        return self.modality.open(source)

    def embed(self, source: Any, batch_size: int = 256, accelerator: str = "auto") -> np.ndarray:
        """(N, D) features of every sample of `source`, computed in float32; NaN rows where one cannot be read.

        Args:
            source: of the run's kind of data.
            batch_size: samples a forward pass; what an encoder that remembers (`tgn`) gives depends on it, since it has
                seen the batches before.
            accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.
        """
        from labelfree.tasks.embed import embed

        return embed(self.encoder, self.modality, self.open(source), batch_size, accelerator=accelerator)

    def evaluate(self, train: Any, test: Any = None, *, label: str, **options: Any) -> Evaluation:
        """Prove it with labels: see `labelfree.evaluation.protocol.evaluate`."""
        from labelfree.evaluation.protocol import evaluate

        return evaluate(self, train, test, label=label, **options)

    def finetune(self, train: Any, label: str, out: str | Path, **options: Any) -> Model:
        """Train a classifier from the encoder: see `labelfree.tasks.finetune.finetune`."""
        from labelfree.tasks.finetune import finetune

        return finetune(self, train, label, out, **options)

    def anomalies(self, source: Any, reference: Any = None, **options: Any) -> Anomalies:
        """How strange each sample is, without labels: see `labelfree.tasks.anomalies.find_anomalies`."""
        from labelfree.tasks.anomalies import find_anomalies

        return find_anomalies(self, source, reference, **options)

    def zero_shot(self, source: Any, label: str | None = None, **options: Any) -> ZeroShot:
        """Name samples by classes given in words: see `labelfree.tasks.sides.zero_shot`."""
        from labelfree.tasks.sides import zero_shot

        return zero_shot(self, source, label, **options)

    def retrieve(self, source: Any, at: Sequence[int] = (1, 5, 10), **options: Any) -> list[Direction]:
        """Find each side of a row by the others: see `labelfree.tasks.sides.retrieve`."""
        from labelfree.tasks.sides import retrieve

        return retrieve(self, source, at, **options)

    def generate(self, prompt: str = "", **options: Any) -> str:
        """Continue a text, after `next` on text or bytes: see `labelfree.tasks.generate.generate`."""
        from labelfree.tasks.generate import generate

        return generate(self, prompt, **options)

    def perplexity(self, source: Any, **options: Any) -> Perplexity:
        """How well a model of `next` predicts texts: see `labelfree.tasks.generate.perplexity`."""
        from labelfree.tasks.generate import perplexity

        return perplexity(self, source, **options)

    def forecast(self, source: Any, steps: int, **options: Any) -> Forecast:
        """Continue series, after `next` on series: see `labelfree.tasks.forecast.forecast`."""
        from labelfree.tasks.forecast import forecast

        return forecast(self, source, steps, **options)

    def report(self) -> Path:
        """Write `report.html` and return its path."""
        from labelfree.evaluation.report import write_report

        return write_report(Run(self.path))  # as it is on the disk by now

    def evaluations(self) -> Sequence[Mapping[str, Any]]:
        """Results that `evaluate` has saved under `evaluation/`."""
        return [read_json(path) for path in sorted((self.path / "evaluation").glob("*.json"))]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, state={self.state!r})"


def load(path: str | Path, encoder: torch.nn.Module | None = None) -> Any:
    """Open what Labelfree has written: a `Run`, or a fine-tuned `Model`.

    Args:
        path: the folder.
        encoder: the user's own network, if the run was trained with one.
    """
    if (Path(path).expanduser() / "model.json").exists():
        from labelfree.tasks.finetune import Model

        return Model.load(path, encoder)
    return Run(path, encoder)
