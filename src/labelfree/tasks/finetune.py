"""Fine-tuning: a classifier that starts from a run's encoder, as a folder that can be moved and loaded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from labelfree import runtime
from labelfree.data.dataset import Dataset
from labelfree.encoders.base import Encoder
from labelfree.encoders.saved import build_from_config, encoder_config
from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import read_json, replacing, writable, write_json
from labelfree.modalities.base import Modality
from labelfree.settings import whole
from labelfree.tasks.classifier import (
    Classifier,
    Examples,
    FinetuneSettings,
    Search,
    class_probabilities,
    seconds_a_step,
    seconds_beside,
    train_searched,
    with_probe,
)
from labelfree.tasks.embed import embed
from labelfree.tasks.labels import LabelBudget, Labels, check_enough, choose, is_uneven, read_labels
from labelfree.tensors import read_tensors, write_tensors
from labelfree.training.logs import duration, parse_duration, say

if TYPE_CHECKING:
    from labelfree.run import Run


class Model:
    """A fine-tuned classifier.

    Attributes:
        path: its folder, or None where it has not been saved.
        classes: names of the classes, in the order of the probabilities.
        info: what it was trained on and how, and its score on the validation part ("validation").
    """

    def __init__(
        self, network: Classifier, modality: Modality, classes: tuple[str, ...], info: dict[str, Any], path: Path | None
    ) -> None:
        self.network, self.modality, self.classes, self.info, self.path = network.eval(), modality, classes, info, path

    @property
    def encoder(self) -> Encoder:
        """The fine-tuned encoder, in evaluation mode."""
        return self.network.encoder

    def open(self, source: Any) -> Dataset:
        """Open a source as the model's kind of data."""
        return self.modality.open(source)

    def embed(self, source: Any, batch_size: int = 256, accelerator: str = "auto") -> np.ndarray:
        """(N, D) float32 features of the fine-tuned encoder, NaN rows where a sample cannot be read."""
        return embed(self.encoder, self.modality, self.open(source), batch_size, accelerator=accelerator)

    def probabilities(self, source: Any, batch_size: int = 256, accelerator: str = "auto") -> np.ndarray:
        """(N, C) float32 probability of each class for every sample, NaN rows where one cannot be read."""
        options: dict[str, Any] = {"batch_size": batch_size, "accelerator": accelerator}
        return class_probabilities(self.network, self.modality, self.open(source), **options)

    def predict(self, source: Any, batch_size: int = 256, accelerator: str = "auto") -> np.ndarray:
        """(N,) names of the most probable classes, None where a sample cannot be read."""
        return self.names(self.probabilities(source, batch_size, accelerator))

    def names(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, C) → (N,) names of the most probable classes, None for NaN rows."""
        best = np.array(self.classes, dtype=object)[np.nan_to_num(probabilities).argmax(axis=1)]
        best[np.isnan(probabilities).any(axis=1)] = None
        return best

    def save(self, folder: Path, spec: str, causal: bool) -> None:
        """Write model.safetensors and model.json; `spec` and `causal` say how to build the encoder again."""
        folder.mkdir(parents=True, exist_ok=True)
        digest = write_tensors(folder / "model.safetensors", self.network.state_dict())
        config = encoder_config(self.network.encoder, self.modality, spec, causal, digest)
        write_json(folder / "model.json", {**config, "classes": list(self.classes), "info": self.info})
        self.path = folder

    @classmethod
    @runtime.plain_torch()
    def load(cls, path: str | Path, encoder: nn.Module | None = None) -> Self:
        """Open a folder that `finetune` wrote.

        Args:
            path: the folder.
            encoder: the user's own network, if the run was trained with one.

        Raises:
            LabelfreeError: missing, cut or altered.
        """
        folder = Path(path).expanduser()
        if not (folder / "model.json").exists():
            raise LabelfreeError(f"There is no model at '{path}'.", "Name the folder that `labelfree finetune` wrote.")
        config = read_json(folder / "model.json")
        modality, built = build_from_config(config, encoder)
        network = Classifier(built, len(config["classes"]))
        network.load_state_dict(read_tensors(folder / "model.safetensors", config["sha256"]))
        return cls(network, modality, tuple(config["classes"]), config["info"], folder)

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {len(self.classes)} classes)"


@runtime.state_kept()
def finetune(
    run: Run,
    train: Any,
    label: str,
    out: str | Path,
    *,
    budget: str | float | int | None = None,
    group: str | None = None,
    seed: int | None = None,
    time_limit: float | str | None = None,
    force: bool = False,
    **settings: Any,
) -> Model:
    """Train a classifier, all layers of it, that starts from a run's encoder.

    Learning rates are chosen on a fifth of the training samples (whole groups, if there are any; the last of events);
    the model is then trained on all of them.

    Args:
        run: the pretraining to start from.
        train: labelled source.
        label: its label column.
        out: folder for the model; must not exist unless `force`.
        budget: use only so many labels ("10%", "5/class", 200).
        group: column whose values the validation part keeps whole.
        seed: of every random number, from 0 on; 0 by default.
        time_limit: seconds or "10m"; lowers the number of steps.
        force: replace the folder of another model; no other folder is ever replaced.
        **settings: of `FinetuneSettings`.

    Raises:
        LabelfreeError: anything that the user can mend.
    """
    began = time.perf_counter()
    if run.encoder.remembers:
        raise Refusal(
            f"Encoder '{run.encoder.name}' remembers every sample before the one it looks at, so that it cannot be "
            "fine-tuned on a few of them.",
            "Use its frozen features, or pretrain a transformer.",
        )
    seed = whole("seed", seed or 0)
    chosen = FinetuneSettings.read(settings, "finetune")
    runtime.checked_device(chosen.accelerator)
    runtime.prepare_machine(chosen.threads)
    torch.manual_seed(seed)
    folder = _folder(out, force, run, train)
    spec = read_json(run.encoder_folder / "config.json")["encoder"]
    until = None if time_limit is None else began + parse_duration(time_limit)
    examples, labels = _examples(run, train, label, group, budget, seed)
    wanted = chosen.steps(len(examples.y))
    steps = _steps(run, examples, chosen, until)
    network, found = train_searched(
        lambda few: with_probe(run.encoder, run.modality, few, accelerator=chosen.accelerator),
        run.modality,
        examples,
        chosen,
        steps,
        seed,
        tell=say,
    )
    info = {
        "label": label,
        "labels": len(examples.y),
        "run": str(run.path),
        "fingerprint": examples.dataset.fingerprint(),
        "settings": chosen.model_dump(mode="json"),
        "learning_rate": found.pace.rate,
        "layer_decay": found.pace.decay,
        "steps": steps,
        "wanted_steps": wanted,
        "seed": seed,
        "validation": {"metric": found.metric, "score": found.score},
        "seconds": round(time.perf_counter() - began, 1),
        "versions": runtime.versions(),
    }
    model = Model(network.cpu(), run.modality, labels.classes, info, None)
    with replacing(folder) as beside:
        model.save(beside, spec["spec"], spec["causal"])
    model.path = folder
    _say(model, found, labels)
    return model


def _folder(out: str | Path, force: bool, run: Run, source: Any) -> Path:
    """The model's folder. Raises LabelfreeError where something is there that must stay: all but a model, if forced."""
    folder = writable(out, force)
    if not folder.exists():
        return folder
    needed = [run.path, *([source] if isinstance(source, str | Path) else [])]
    inside = any(Path(place).resolve().is_relative_to(folder.resolve()) for place in needed)
    if inside or not (folder / "model.json").exists():
        what = "holds what the model is made from" if inside else "is no model's folder"
        raise LabelfreeError(f"'{folder}' {what}, and is not replaced.", "Name another folder with --out.")
    return folder


def _examples(
    run: Run, train: Any, label: str, group: str | None, budget: str | float | int | None, seed: int
) -> tuple[Examples, Labels]:
    dataset = run.open(train)
    labels = read_labels(dataset, label, group)
    check_enough(labels, label, 2)
    rows = np.flatnonzero(labels.y >= 0)
    if budget is not None:
        quotas = LabelBudget.parse(budget).quotas(labels.counts)
        rows = rows[choose(labels.y[rows], quotas, np.random.default_rng(seed), labels.groups_of(rows)[0])]
    groups, by_time = labels.groups_of(rows)
    metric = "balanced_accuracy" if is_uneven(labels.counts) else "accuracy"
    chronological = by_time or not run.modality.shuffled
    known = (dataset, rows, labels.y[rows], groups, metric)
    return Examples(*known, classes=len(labels.classes), chronological=chronological).in_memory(run.modality), labels


def _steps(run: Run, examples: Examples, chosen: FinetuneSettings, until: float | None) -> int:
    """Steps that can be done `until` then by the clock; says how many they are, and about how long it will all take."""
    steps, trials = chosen.steps(len(examples.y)), len(chosen.paces(True))
    cost = seconds_a_step(Classifier(run.encoder, examples.classes), run.modality, examples, chosen)
    cost *= 1 + trials / 2  # trials of half the steps, and the training itself
    looking = seconds_beside(run.encoder, run.modality, examples, trials, chosen.accelerator)
    if until is not None:
        steps = max(1, min(steps, int(0.9 * (until - time.perf_counter() - looking) / cost)))
    say(
        f"Fine-tuning on {len(examples.y):,} labels of {examples.classes} classes: {steps:,} steps, and half as many "
        f"for each of {trials} learning rates: about {duration(looking + steps * cost)}"
    )
    return steps


def _say(model: Model, found: Search, labels: Labels) -> None:
    for note in labels.notes:
        say(note)
    score = "" if found.score is None else f": {found.metric.replace('_', ' ')} {found.score:.3f} on a validation part"
    took, steps, wanted = duration(model.info["seconds"]), model.info["steps"], model.info["wanted_steps"]
    if steps < wanted:
        say(f"Trained for {steps:,} of {wanted:,} steps, for want of time.", "yellow")
    say(f"Fine-tuned on {model.info['labels']:,} labels in {took}{score}. '{model.path}'", "bold green")
