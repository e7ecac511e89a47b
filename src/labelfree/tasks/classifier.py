"""A classifier on an encoder, and how all of its layers are trained: for fine-tuning and for training from scratch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from labelfree import runtime
from labelfree.data.ahead import read_ahead
from labelfree.data.batch import Batch, Sample
from labelfree.data.cache import Cached, cached
from labelfree.data.dataset import Dataset
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.modalities.base import Modality
from labelfree.settings import Settings, Share
from labelfree.tasks.embed import apply, embed, together
from labelfree.tasks.labels import Part, Subset, folds
from labelfree.tasks.logistic import Scaler, fit_logistic
from labelfree.tasks.metrics import best_of, class_weights, judge
from labelfree.training.optim import cosine
from labelfree.training.settings import Auto

#: Examples that the last layer is fitted to at most before all layers learn.
PROBED = 4000
#: Seconds between two words of how far a training is.
EVERY = 10.0
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How fast layers learn: the last one at `rate`, every other at `decay` times the rate of the layer after it."""

    rate: float
    decay: float = 1.0


class FinetuneSettings(Settings):
    """How all layers of an encoder and a new last layer are trained on labels."""

    epochs: PositiveInt = 30
    """passes over the labelled samples; between 120 and `most_steps` steps in any case"""
    most_steps: PositiveInt = 3000
    """most steps"""
    batch_size: PositiveInt | Auto = "auto"
    """samples a step; auto: 32, and 128 from 4,000 labels on"""
    learning_rate: PositiveFloat | Auto = "auto"
    """AdamW's peak learning rate of the last layer; auto: chosen on a validation part"""
    weight_decay: float = Field(0.05, ge=0)
    """weight decay"""
    layer_decay: PositiveFloat | Auto = "auto"
    """each layer of a pretrained encoder learns at this multiple of the rate of the layer after it; auto: chosen too"""
    augment: Literal["light", "contrast", "none"] = "light"
    """views that are learnt from: light, contrast or none"""
    warmup: Share = 0.1
    """share of the training in which the learning rate rises"""
    threads: PositiveInt | Auto = "auto"
    """processor threads for tensor operations, also of what is frozen; auto: all cores"""
    accelerator: runtime.Accelerator = "auto"
    """where to compute, also what is frozen"""

    def batch(self, labels: int) -> int:
        """Samples of a step, for so many labels."""
        most = (128 if labels >= 4000 else 32) if self.batch_size == "auto" else int(self.batch_size)
        return min(most, max(16, labels))

    def steps(self, labels: int) -> int:
        """Steps for so many labels."""
        return min(max(120, math.ceil(self.epochs * labels / self.batch(labels))), self.most_steps)

    def paces(self, pretrained: bool) -> tuple[Pace, ...]:
        """What the search tries: where no rate is given, as much for networks from scratch as for pretrained ones.

        Layers that know little need to move as far as new ones, layers that know much must not (Howard & Ruder 2018).
        """
        rates = (2e-3, 4e-4, 9e-4) if self.learning_rate == "auto" else (float(self.learning_rate),)
        if not pretrained:
            return tuple(Pace(rate) for rate in rates)
        if self.layer_decay != "auto":
            return tuple(Pace(rate, float(self.layer_decay)) for rate in rates)
        return *(Pace(rate, 0.75) for rate in rates[:2]), Pace(rates[0])


class Classifier(nn.Module):
    """An encoder and a linear layer on its pooled features."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, view: Batch) -> Tensor:
        """(B, C) float32 logits of a view: bf16 tells logits apart so little that samples tie in rankings."""
        pooled = self.encoder(view).pooled.float()
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled)


@dataclass(frozen=True)
class Examples(Part):
    """Labelled samples to learn from.

    Attributes:
        classes: how many classes there are.
        metric: by which things are chosen; where it is one of `EVEN`, each class counts the same in the loss.
        positive: the class that metrics of rankings look for.
    """

    classes: int = field(kw_only=True)
    metric: str = "accuracy"
    positive: int = 1

    def class_weights(self) -> Tensor:
        """(C,) weight of each class in the loss; their mean over samples is 1."""
        return torch.as_tensor(class_weights(self.metric, self.y, self.classes), dtype=torch.float32)

    def in_memory(self, modality: Modality) -> Examples:
        """The same, read once where they fit."""
        if isinstance(self.dataset, Cached):
            return self
        held = cached(Subset(self.dataset, self.rows), modality)
        if not isinstance(held, Cached):
            return self
        return replace(self.only(held.kept), dataset=held, rows=np.arange(len(held)))

    def batch(self, modality: Modality, chosen: np.ndarray) -> tuple[Batch, Tensor] | None:
        """Raw batch of the examples `chosen` that can be read, and their classes; None where none can."""
        if isinstance(self.dataset, Cached):
            return self.dataset.batch(self.rows[chosen]), torch.as_tensor(self.y[chosen])
        items = self.dataset.read(self.rows[chosen].tolist())
        kept = [i for i, item in enumerate(items) if isinstance(item, Sample)]
        if not kept:
            return None
        raw = modality.collate([item for item in items if isinstance(item, Sample)])
        return raw, torch.as_tensor(self.y[chosen[kept]])

    def parts(self, modality: Modality, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Places in `chosen`, by those that fit in memory together: all at once, but where some are very long."""
        every = self.dataset.sizes()
        sizes = None if every is None else every[self.rows[chosen]]
        order = np.arange(len(chosen)) if sizes is None else np.argsort(sizes, kind="stable")
        for part in together(len(chosen), len(chosen), None if sizes is None else sizes[order], modality):
            yield np.sort(order[part])


def parameter_groups(model: Classifier, pace: Pace, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW, a rate for each layer; vectors (biases, normalisation) do not decay."""
    layers = [*model.encoder.layers(), list(model.head.parameters())]
    seen = {id(p) for layer in layers for p in layer}
    layers[0] = [*layers[0], *(p for p in model.encoder.parameters() if id(p) not in seen)]
    groups = []
    for depth, layer in enumerate(layers):
        scaled = pace.rate * pace.decay ** (len(layers) - 1 - depth)
        for params, decay in (
            ([p for p in layer if p.ndim > 1], weight_decay),
            ([p for p in layer if p.ndim <= 1], 0.0),
        ):
            if params:
                groups.append({"params": params, "lr": scaled, "peak": scaled, "weight_decay": decay})
    return groups


def _orders(count: int, size: int, steps: int, seed: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """For each step: which examples, and a number for each that never comes again (for its augmentation)."""
    rng = np.random.default_rng(seed)
    pool = np.empty(0, dtype=np.int64)
    for step in range(steps):
        while len(pool) < size:
            pool = np.concatenate([pool, rng.permutation(count)])
        yield pool[:size], torch.arange(step * size, (step + 1) * size)
        pool = pool[size:]


def _read(
    examples: Examples, modality: Modality, order: tuple[np.ndarray, Tensor]
) -> tuple[np.ndarray, list[tuple[Tensor, Batch, Tensor]]]:
    """The examples of a step, and its parts that can be read: their numbers, raw batch and classes."""
    chosen, number = order
    parts = [(number[part], examples.batch(modality, chosen[part])) for part in examples.parts(modality, chosen)]
    return chosen, [(numbers, *found) for numbers, found in parts if found is not None]


def train_classifier(
    model: Classifier,
    modality: Modality,
    examples: Examples,
    settings: FinetuneSettings,
    *,
    pace: Pace,
    steps: int,
    seed: int = 0,
    tell: Tell | None = None,
) -> Classifier:
    """Train all layers of `model`, in place, for `steps` steps with a cosine schedule; returns it in evaluation mode.

    Args:
        model: on the CPU or the device; it stays on the device.
        modality: makes the random views.
        examples: what to learn from; best held in memory.
        settings: all but the pace and the steps.
        pace: peak learning rates.
        steps: optimiser steps.
        seed: of order and augmentation.
        tell: is told now and then how far it is.
    """
    where = runtime.device(settings.accelerator)
    model.to(where).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, pace, settings.weight_decay), fused=True)
    weights = examples.class_weights().to(where)
    size = settings.batch(len(examples.y))
    warmup, spoke = round(settings.warmup * steps), time.perf_counter()
    orders, read = _orders(len(examples.y), size, steps, seed), partial(_read, examples, modality)
    found = map(read, orders) if isinstance(examples.dataset, Cached) else read_ahead(read, orders)
    for step, (chosen, parts) in enumerate(found):
        optimizer.zero_grad(set_to_none=True)
        whole = weights[torch.as_tensor(examples.y[chosen])].sum()
        for number, raw, y in parts:
            raw, y = raw.to(where), y.to(where)
            draw = Draw.start(seed, 0, step, number[: len(y)].to(where))
            with runtime.autocast(where, "auto"):
                logits = model(modality.view(raw, draw, settings.augment))
            loss = F.cross_entropy(logits.float(), y, weight=weights, reduction="sum") / whole
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * cosine(step, steps, warmup)
        optimizer.step()
        if tell is not None and time.perf_counter() - spoke > EVERY:
            spoke = time.perf_counter()
            tell(f"step {step + 1:,}/{steps:,}")
    return model.eval()


def class_probabilities(model: Classifier, modality: Modality, dataset: Dataset, **options: Any) -> np.ndarray:
    """(N, C) float32 probabilities of every sample, NaN rows where one cannot be read; options as `embed.apply` has."""
    return np.exp(class_log_probabilities(model, modality, dataset, **options))


def class_log_probabilities(model: Classifier, modality: Modality, dataset: Dataset, **options: Any) -> np.ndarray:
    """Logarithms of the same, which tell samples apart that the model is sure of: near 0 and 1 probabilities tie."""

    def logarithms(view: Batch) -> Tensor:
        return model(view).log_softmax(dim=1)

    return apply(model, logarithms, model.head.out_features, modality, dataset, **options)


def with_probe(
    encoder: Encoder, modality: Modality, examples: Examples, penalty: float = 1e-3, accelerator: str = "auto"
) -> Classifier:
    """A copy of the encoder with a last layer that logistic regression has fitted to its frozen features.

    Starting there keeps fine-tuning from distorting what was learnt (Kumar et al. 2022, "LP-FT"). Of many examples the
    regression sees some, drawn at random.
    """
    model = Classifier(copy.deepcopy(encoder), examples.classes)
    model.encoder.rescale()
    if len(examples.y) > PROBED:
        examples = examples.only(np.sort(np.random.default_rng(0).permutation(len(examples.y))[:PROBED]))
    features = embed(encoder, modality, examples.dataset, indices=examples.rows, accelerator=accelerator)
    readable = ~np.isnan(features[:, 0])
    x, y = features[readable], examples.y[readable]
    scaler = Scaler.fit(x)
    weights = examples.class_weights().numpy()[y][:, None]
    found = fit_logistic(scaler(x), y, examples.classes, np.array([penalty]), weights)
    kernel = found[:-1, 0] * np.asarray(scaler.factor)[:, None]
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(kernel.T.copy()))
        model.head.bias.copy_(torch.from_numpy(found[-1, 0] - scaler.mean @ kernel))
    return model


@dataclass(frozen=True)
class Search:
    """What a search found: the pace, and its score on the validation part (None without one)."""

    pace: Pace
    score: float | None
    metric: str


def search_pace(
    make: Callable[[Examples], Classifier],
    modality: Modality,
    examples: Examples,
    settings: FinetuneSettings,
    steps: int,
    seed: int = 0,
    pretrained: bool = True,
    tell: Tell | None = None,
) -> Search:
    """Try each pace on four fifths of the examples, for half of `steps`, and keep the best on the last fifth.

    Args:
        make: the network to start from, for these examples.
        modality, examples, settings, steps, seed: as `train_classifier`.
        pretrained: whether the network is; see `FinetuneSettings.paces`.
        tell: is told how each trial went.
    """
    fold = folds(examples.y, 5, np.random.default_rng(seed), examples.groups, examples.chronological)
    fit, held = examples.only(fold != 0), examples.only(fold == 0)
    if len(held.y) == 0 or len(np.unique(fit.y)) < 2:
        return Search(settings.paces(pretrained)[0], None, examples.metric)
    paces, start, half = settings.paces(pretrained), make(fit), math.ceil(steps / 2)
    scores, likelihoods = [], []
    for pace in paces:
        model = train_classifier(
            copy.deepcopy(start), modality, fit, settings, pace=pace, steps=half, seed=seed, tell=tell
        )
        where: dict[str, Any] = {"indices": held.rows, "accelerator": settings.accelerator}
        found = class_log_probabilities(model, modality, held.dataset, **where)
        y, found = held.y[~np.isnan(found[:, 0])], found[~np.isnan(found[:, 0])]
        scores.append(judge(examples.metric, y, found, examples.positive) if len(y) else math.nan)
        if tell is not None:
            fall = "" if pace.decay == 1 else f", each layer before at {pace.decay:g} of it"
            tell(f"  learning rate {pace.rate:g}{fall}: {examples.metric.replace('_', ' ')} {scores[-1]:.3f}")
        likelihoods.append(float(found[np.arange(len(y)), y].clip(math.log(1e-6)).mean()) if len(y) else 0.0)
    best, score = best_of(scores, likelihoods)
    return Search(paces[best], score, examples.metric)


def train_searched(
    make: Callable[[Examples], Classifier],
    modality: Modality,
    examples: Examples,
    settings: FinetuneSettings,
    steps: int,
    seed: int = 0,
    pretrained: bool = True,
    tell: Tell | None = None,
) -> tuple[Classifier, Search]:
    """Search the pace on a validation part, then train on all examples; arguments as `search_pace`."""
    found = search_pace(make, modality, examples, settings, steps, seed, pretrained, tell)
    whole = make(examples)
    train_classifier(whole, modality, examples, settings, pace=found.pace, steps=steps, seed=seed, tell=tell)
    return whole, found


def seconds_a_step(model: Classifier, modality: Modality, examples: Examples, settings: FinetuneSettings) -> float:
    """Measured time of one training step, on a copy."""
    trial = copy.deepcopy(model)
    train_classifier(trial, modality, examples, settings, pace=Pace(1e-5), steps=1)
    where = runtime.device(settings.accelerator)
    began = runtime.clock(where)
    train_classifier(trial, modality, examples, settings, pace=Pace(1e-5), steps=3)
    return (runtime.clock(where) - began) / 3


def seconds_beside(
    encoder: Encoder, modality: Modality, examples: Examples, trials: int, accelerator: str = "auto"
) -> float:
    """Time that fine-tuning takes beside its steps, by a few samples: to embed those that the last layer is fitted to,
    for the trials and for the training itself, and to score the part that is held out, once a trial.
    """
    few = examples.only(np.arange(min(64, len(examples))))
    look = partial(embed, encoder, modality, few.dataset, indices=few.rows, accelerator=accelerator)
    look()  # the first time is slower
    began = time.perf_counter()
    look()
    looks = 2 * min(PROBED, len(examples)) + trials * len(examples) / 5
    return looks * (time.perf_counter() - began) / len(few)
