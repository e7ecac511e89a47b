"""Several objectives at once: a weighted sum on one encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import create_model
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.base import Modality
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe, Reconstruction, Step
from labelfree.settings import Settings


@dataclass(frozen=True)
class Part:
    """One of the objectives: the name that a user gave it, what it is, and its weight in the sum."""

    name: str
    weight: float
    objective: type[Objective]
    recipe: Recipe | None


class Several(Objective):
    """Σ weight · loss of its parts, which share the encoder; each part has its own views, heads and state."""

    parts: ClassVar[tuple[Part, ...]]

    def __init__(self, encoder: Encoder, modality: Modality, settings: Settings | None = None) -> None:
        super().__init__(encoder, modality, settings)
        self.learners = nn.ModuleList(
            part.objective(encoder, modality, getattr(self.settings, part.name)) for part in self.parts
        )
        self.vital = {
            f"{part.name}/{key}": sign
            for part, learner in zip(self.parts, self._learners, strict=True)
            for key, sign in learner.vital.items()
        }
        for learner in self.learners:
            # known to each part, but a module of the sum alone: a checkpoint then holds it once
            del learner._modules["encoder"]
            learner.__dict__["encoder"] = encoder
        cases = {learner.case for learner in self._learners if learner.case}
        if len(cases) > 1:
            raise Refusal(
                f"A batch has partners by one column, not by {' and '.join(sorted(cases))}.",
                "Give all methods of the sum the same case.",
            )

    @classmethod
    def settings_of(cls, shares: Mapping[str, Mapping[str, Any]]) -> Settings:
        read = {}
        for part in cls.parts:
            recipe = part.recipe.settings if part.recipe else {}
            read[part.name] = part.objective.settings_class.read({**recipe, **shares[part.name]}, part.name)
        return cls.settings_class(**read)

    @classmethod
    def owners(cls) -> Mapping[str, type[Settings]]:
        return {part.name: part.objective.settings_class for part in cls.parts}

    @property
    def case(self) -> str:
        return next((learner.case for learner in self._learners if learner.case), "")

    @property
    def product(self) -> Encoder:
        """The encoder that the first part which averages it makes of it."""
        found = (learner.product for learner in self._learners)
        return next((product for product in found if product is not self.encoder), self.encoder)

    @property
    def _learners(self) -> list[Objective]:
        return list(self.learners)  # type: ignore[arg-type]

    def expect(self, samples: int) -> None:
        for learner in self._learners:
            learner.expect(samples)

    def loss(self, batch: Batch, draw: Draw) -> Step:
        total: list[Tensor] = []
        features: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for part, learner in zip(self.parts, self._learners, strict=True):
            step = learner.loss(batch, draw.view(part.name))
            total.append(part.weight * step.loss)
            features.append(step.features)
            logs |= {f"{part.name}/loss": step.loss.detach()}
            logs |= {f"{part.name}/{key}": value for key, value in step.logs.items()}
        return Step(torch.stack(total).sum(), features[0], logs)

    def _ask(self, what: str, *arguments: Any) -> Any:
        """The answer of the first part that has one."""
        for learner in self._learners:
            try:
                return getattr(learner, what)(*arguments)
            except Refusal:
                continue
        return getattr(super(), what)(*arguments)

    def anomaly_score(self, batch: Batch) -> Tensor:
        return self._ask("anomaly_score", batch)

    def reconstruct(self, batch: Batch, draw: Draw) -> Reconstruction:
        return self._ask("reconstruct", batch, draw)

    def sample(self, view: Batch, draw: Draw) -> Tensor:
        return self._ask("sample", view, draw)

    def predict_next(self, view: Batch) -> Tensor:
        return self._ask("predict_next", view)

    def predict_each(self, view: Batch) -> Tensor:
        return self._ask("predict_each", view)

    def after_step(self, progress: float) -> None:
        for learner in self._learners:
            learner.after_step(progress)

    def after_epoch(self) -> None:
        for learner in self._learners:
            learner.after_epoch()


def compose(parts: tuple[Part, ...]) -> tuple[type[Objective], Recipe]:
    """The sum of parts as an objective of its own, and what their recipes ask of engine and modality.

    Raises:
        LabelfreeError: one name twice.
    """
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise LabelfreeError(f"A method stands twice in '{'+'.join(names)}'.", "Give it one weight.")
    name = "+".join(part.name if part.weight == 1 else f"{part.weight:g}*{part.name}" for part in parts)
    fields: dict[str, Any] = {}
    for part in parts:
        kind = part.objective.settings_class
        fields[part.name] = (kind, kind(**(part.recipe.settings if part.recipe else {})))
    members = {
        "name": name,
        "parts": parts,
        "needs": frozenset[Need]().union(*(part.objective.needs for part in parts)),
        "settings_class": create_model("SeveralSettings", __base__=Settings, **fields),
        "defaults": parts[0].objective.defaults,
        "keeps": tuple(f"learners.{i}.{name}" for i, part in enumerate(parts) for name in part.objective.keeps),
        "options": _first(*(part.objective.options for part in parts)),
        "__module__": __name__,
    }
    cls = type("Several", (Several,), members)
    recipes = [part.recipe for part in parts if part.recipe]
    kinds = [set(recipe.modalities) for recipe in recipes if recipe.modalities]
    return cls, Recipe(
        source="; ".join(recipe.source for recipe in recipes),
        training=parts[0].recipe.training if parts[0].recipe else {},
        options=_first(*(recipe.options for recipe in recipes)),
        modalities=tuple(sorted(set.intersection(*kinds))) if kinds else (),
        encoder=next((recipe.encoder for recipe in recipes if recipe.encoder), None),
    )


def _first(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several layers, an earlier one goes before."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = {**layer, **merged}
    return merged


def weighted_names(words: str) -> list[tuple[float, str]]:
    """(weight, name) of "simclr+0.5*masked".

    Raises:
        LabelfreeError: not of this form.
    """
    found = []
    for word in words.split("+"):
        match = re.fullmatch(r"\s*(?:([\d.]+)\s*\*)?\s*([\w-]+)\s*", word)
        weight = float(match[1] or 1) if match and re.fullmatch(r"(\d*\.)?\d+|", match[1] or "") else 0.0
        if match is None or weight <= 0:
            raise LabelfreeError(
                f"'{word.strip()}' in '{words}' is no weight and method.", "Write for instance simclr+0.5*masked."
            )
        found.append((weight, match[2]))
    return found
