"""What there is: modalities, encoders and methods as plain objects, for `labelfree list` and the reference."""

from __future__ import annotations

import inspect
import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from labelfree import registry
from labelfree.needs import Need
from labelfree.objectives.base import Objective, Recipe
from labelfree.settings import Settings
from labelfree.training.settings import TrainSettings

Entry = dict[str, Any]
#: "Chen & He 2021", "van den Oord et al. 2018".
PAPER = r"(van (den |der )?)?[A-ZÁ-Ž][^\s(,.:]*( (van|den|de|et|al\.|&|[A-ZÁ-Ž])[^\s(,]*)*,? \d{4}"


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


def settings(of: str | None = None) -> list[Entry]:
    """Owner, name, type, default and meaning of each setting.

    Args:
        of: a method, a kind of data, "training" or "finetune"; None for all kinds of data and objectives.

    Raises:
        LabelfreeError: there is no such owner.
    """
    from labelfree.tasks.classifier import FinetuneSettings

    owners: dict[str, type[Settings]] = {"training": TrainSettings, "finetune": FinetuneSettings}
    owners |= {name: cls.settings_class for name, cls in registry.modalities().items()}
    recipe = None
    if of is None:
        owners |= {name: cls.settings_class for name, cls in registry.objectives().items()}
    elif of in owners:
        owners = {of: owners[of]}
    else:
        objective, recipe = registry.method(of)
        owners = dict(objective.owners())
    return [entry for name, cls in owners.items() for entry in settings_of(cls, name, recipe)]


def settings_of(cls: type[Settings], owner: str, recipe: Recipe | None = None) -> list[Entry]:
    """The settings of one class; their defaults are those of the recipe where it has its own."""
    own = recipe.settings if recipe else {}
    return [
        {
            "owner": owner,
            "setting": name,
            "type": _kind(field.annotation),
            "default": written(own.get(name, "required" if field.is_required() else field.default)),
            "about": field.description or "",
        }
        for name, field in cls.model_fields.items()
    ]


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> str:
    """A type as a person would write it: `int | auto`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " | ".join(map(_kind, parts))
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if part is Ellipsis else _kind(part) for part in parts)}]"
    return "none" if annotation is NoneType else str(getattr(annotation, "__name__", annotation))


def _method(name: str, objective: type[Objective], recipe: Recipe | None) -> Entry:
    fitting = [m for m, modality in registry.modalities().items() if not registry.missing(objective, modality)]
    return {
        "name": name,
        "objective": objective.name,
        "needs": _names(objective.needs),
        "modalities": [m for m in fitting if recipe is None or not recipe.modalities or m in recipe.modalities],
        "paper": _paper(recipe.source if recipe else _about(objective)),
        "about": recipe.source if recipe else _about(objective),
    }


def _paper(about: str) -> str:
    """The first authors and year that a text names."""
    found = re.search(PAPER, about)
    return found.group() if found else ""


def _names(needs: frozenset[Need]) -> list[str]:
    return [need.name.lower() for need in Need if need in needs]


def _about(cls: type) -> str:
    """The first sentence of the class's documentation, or of its module's."""
    text = cls.__doc__ or inspect.getmodule(cls).__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())
