"""Finds modalities, encoders and objectives: one file each, nothing central to edit.

Every module of `labelfree.modalities`, `labelfree.encoders` and `labelfree.objectives` is looked at, and so are classes
that a user's own code defines by subclassing the contracts.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from labelfree.errors import LabelfreeError, Refusal, nearest

if TYPE_CHECKING:
    from torch import nn

    from labelfree.encoders.base import Encoder
    from labelfree.modalities.base import Modality
    from labelfree.objectives.base import Objective, Recipe

T = TypeVar("T")


@lru_cache
def _import_all(package: str) -> None:
    module = importlib.import_module(f"labelfree.{package}")
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"labelfree.{package}.{info.name}")


def _subclasses(base: type[T]) -> Mapping[str, type[T]]:
    """Classes by name; of those that people define anew (a notebook's cell, run again) the last.

    Raises:
        LabelfreeError: a user's class has the name of one of ours.
    """
    found: dict[str, type[T]] = {}
    pending = [base]
    while pending:
        cls = pending.pop(0)
        pending += cls.__subclasses__()
        # a contract's own base, and helpers between, only declare a name; sums of objectives are put together by one
        if "+" in (name := vars(cls).get("name", "+")) or _replaced(cls):
            continue
        if name in found and _ours(cls) != _ours(found[name]):
            theirs = found[name] if _ours(cls) else cls
            raise LabelfreeError(
                f"'{name}', the name of the class {theirs.__module__}.{theirs.__qualname__}, is taken by Labelfree.",
                "Give it another name.",
            )
        found[name] = cls
    return dict(sorted(found.items()))


def _ours(cls: type) -> bool:
    return cls.__module__.startswith("labelfree.")


def _replaced(cls: type) -> bool:
    """Whether its module holds another class in its place by now."""
    holder: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        holder = getattr(holder, part, None)
    return holder is not None and holder is not cls


def modalities() -> Mapping[str, type[Modality]]:
    from labelfree.modalities.base import Modality

    _import_all("modalities")
    return _subclasses(Modality)  # type: ignore[type-abstract]


def encoders() -> Mapping[str, type[Encoder]]:
    from labelfree.encoders.base import Encoder

    _import_all("encoders")
    return _subclasses(Encoder)  # type: ignore[type-abstract]


def objectives() -> Mapping[str, type[Objective]]:
    from labelfree.objectives.base import Objective

    _import_all("objectives")
    return _subclasses(Objective)  # type: ignore[type-abstract]


def recipes() -> dict[str, tuple[type[Objective], Recipe]]:
    return {name: (cls, recipe) for cls in objectives().values() for name, recipe in cls.recipes.items()}


def find(kind: str, known: Mapping[str, Any], name: str) -> Any:
    """Entry `name` of `known`. Raises LabelfreeError with the nearest name."""
    if name not in known:
        raise LabelfreeError(
            f"There is no {kind} '{name}'.", nearest(name, known) or f"There are: {', '.join(sorted(known))}."
        )
    return known[name]


def method(name: str) -> tuple[type[Objective], Recipe | None]:
    """The objective, and recipe if it is one, that a user's `--method` names; "simclr+0.5*masked" is a weighted sum."""
    if "+" in name or "*" in name:
        from labelfree.objectives.several import weighted_names

        return _sum(name, tuple(method(part)[0] for _, part in weighted_names(name)))
    known: dict[str, Any] = {key: (cls, None) for key, cls in objectives().items()}
    return find("method", known | recipes(), name)


@lru_cache
def _sum(name: str, parts: tuple[type[Objective], ...]) -> tuple[type[Objective], Recipe]:
    """The same class for the same sum of the same `parts`."""
    from labelfree.objectives.several import Part, compose, weighted_names

    return compose(tuple(Part(part, weight, *method(part)) for weight, part in weighted_names(name)))


def build_encoder(spec: str | nn.Module, modality: Modality, causal: bool = False) -> Encoder:
    """The encoder that "timm:resnet18", "dilated" or "transformer:tiny" names; a bare size means the transformer."""
    from labelfree.encoders.transformer import SIZES

    if not isinstance(spec, str):
        from labelfree.encoders.custom import Custom

        return Custom.wrap(spec, modality)
    name, _, variant = spec.partition(":")
    if name in SIZES:
        name, variant = "transformer", name
    cls = find("encoder", encoders(), name)
    if not cls.serves(modality):
        served = ", ".join(key for key, kind in modalities().items() if cls.serves(kind))
        fitting = [key for key, other in encoders().items() if other.serves(modality)]
        raise Refusal(f"Encoder '{name}' is for {served}, not for {modality.name}.", f"Use {', '.join(fitting)}.")
    return cls.build(variant, modality, causal=causal)


def needs_causal(objective: type[Objective]) -> bool:
    """Whether the encoder must be built so that it cannot see the future."""
    from labelfree.needs import Need

    return Need.CAUSAL in objective.needs


def encoder_options(spec: str) -> Mapping[str, Any]:
    """Settings of the modality that the encoder which `spec` names brings with it."""
    name, _, variant = spec.partition(":")
    cls = encoders().get(name)
    return cls.options(variant) if cls is not None else {}


def lasting(spec: str) -> str:
    """The name of an encoder as it is found again from another working directory, where it names a folder."""
    name, colon, variant = spec.partition(":")
    cls = encoders().get(name)
    return f"{name}:{cls.lasting(variant)}" if cls is not None and colon else spec


def missing(
    objective: type[Objective], modality: Modality | type[Modality], encoder: Encoder | None = None
) -> list[str]:
    """Sentences for the needs of `objective` that the modality, or the encoder, does not meet; empty if it fits."""
    from labelfree.needs import Need

    of_encoder = {Need.TOKENS, Need.MASK, Need.CAUSAL}
    of_modality = {need for need in Need if need not in (Need.TOKENS, Need.CAUSAL)}
    gaps = [
        f"{modality.name} data does not offer {n}" for n in Need if n in objective.needs & of_modality - modality.offers
    ]
    if encoder is not None:
        gaps += [f"the encoder does not offer {n}" for n in Need if n in objective.needs & of_encoder - encoder.can]
    return gaps


def check_fit(objective: type[Objective], modality: Modality, encoder: Encoder | None = None, name: str = "") -> None:
    """Raises Refusal with the needs that are missing and the methods that would fit, or the encoder that would.

    Args:
        name: what the user calls the objective, where that is not its own name.
    """
    gaps = missing(objective, modality, encoder)
    if gaps:
        fitting = [name for name, cls in objectives().items() if not missing(cls, modality, encoder)]
        other = "" if missing(objective, modality) else "Take --encoder transformer:nano, or another method: "
        remedy = f"{other or 'What fits: '}{', '.join(fitting)}."
        raise Refusal(f"Method '{name or objective.name}' needs more: {'; '.join(gaps)}.", remedy)
