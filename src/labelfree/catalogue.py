"""What there is: modalities, encoders and methods as plain objects, for `labelfree list` and the reference."""

from __future__ import annotations

import inspect
from typing import Any

from labelfree import registry
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe

Entry = dict[str, Any]


def modalities() -> list[Entry]:
    """Name, needs it offers, and what it is."""
    return [
        {"name": name, "offers": _names(cls.offers), "about": _about(cls)}
        for name, cls in registry.modalities().items()
    ]


def encoders() -> list[Entry]:
    """Name, variants, modalities it serves, and what it is."""
    every = registry.modalities().items()
    return [
        {
            "name": name,
            "variants": cls.variants(),
            "modalities": [key for key, kind in every if cls.serves(kind)],
            "about": _about(cls),
        }
        for name, cls in registry.encoders().items()
    ]


def methods() -> list[Entry]:
    """Every objective and recipe: name, objective, needs, modalities that meet them, and where it comes from."""
    found = [_method(name, cls, None) for name, cls in registry.objectives().items()]
    found += [_method(name, cls, recipe) for name, (cls, recipe) in registry.recipes().items()]
    return sorted(found, key=lambda entry: (entry["objective"], entry["name"] != entry["objective"], entry["name"]))


def _method(name: str, objective: type[Objective], recipe: Recipe | None) -> Entry:
    fitting = [m for m, modality in registry.modalities().items() if not registry.missing(objective, modality)]
    return {
        "name": name,
        "objective": objective.name,
        "needs": _names(objective.needs),
        "modalities": [m for m in fitting if recipe is None or not recipe.modalities or m in recipe.modalities],
        "about": recipe.source if recipe else _about(objective),
    }


def _names(needs: frozenset[Need]) -> list[str]:
    return [need.name.lower() for need in Need if need in needs]


def _about(cls: type) -> str:
    """The first sentence of the class's documentation, or of its module's."""
    text = cls.__doc__ or inspect.getmodule(cls).__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())
