"""The registry: one-file additions are found, names are unambiguous, and everything is documented."""

from __future__ import annotations

import inspect
import sys
import types
from typing import ClassVar

import pytest

from labelfree import LabelfreeError, Objective, Refusal, Settings, catalogue, registry
from labelfree.needs import Need
from labelfree.objectives.simclr import SimCLR
from labelfree.objectives.vicreg import VICReg
from labelfree.training.pretrain import pretrain
from labelfree.training.settings import TrainSettings

CLASSES = [
    *registry.modalities().values(),
    *registry.encoders().values(),
    *registry.objectives().values(),
]
SETTINGS = [TrainSettings, *(cls.settings_class for cls in CLASSES if hasattr(cls, "settings_class"))]


@pytest.mark.parametrize("objective", registry.objectives().values(), ids=lambda cls: cls.name)
@pytest.mark.parametrize("modality", registry.modalities().values(), ids=lambda cls: cls.name)
def test_no_setting_has_two_owners(objective: type[Objective], modality: type) -> None:
    """So that `key=value` never needs its owner's name, and never hides an option of `pretrain`."""
    owners = [TrainSettings, objective.settings_class, modality.settings_class]  # type: ignore[attr-defined]
    options = [name for name in inspect.signature(pretrain).parameters if name != "settings"]
    names = [*options, *(key for cls in owners for key in cls.model_fields)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_every_entry_says_what_it_is(cls: type) -> None:
    assert len(cls.__doc__ or "") > 20


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
def test_every_setting_is_explained_in_one_line_and_has_a_default(cls: type[Settings]) -> None:
    for name, field in cls.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name
        assert not field.is_required(), name
    cls()


def test_every_recipe_names_its_source_and_settings_that_exist() -> None:
    for name, (objective, recipe) in registry.recipes().items():
        assert any(c.isdigit() for c in recipe.source), f"{name} names no paper"
        objective.settings_class.read(recipe.settings, name)
        TrainSettings.read(recipe.training, name)
        for modality in recipe.modalities:
            registry.modalities()[modality].settings_class.read(recipe.options, name)


def test_names_of_objectives_and_recipes_do_not_clash() -> None:
    names = [entry["name"] for entry in catalogue.methods()]
    assert len(names) == len(set(names)) == len(registry.objectives()) + len(registry.recipes())


def test_a_class_defined_anywhere_is_found_by_its_name() -> None:
    class Nothing(Objective):
        """An objective that is only here to be found."""

        name = "nothing-but-found"
        settings_class = Settings
        needs: ClassVar[frozenset[Need]] = frozenset()

    assert registry.method("nothing-but-found") == (Nothing, None)


def test_a_class_that_is_defined_again_replaces_the_first() -> None:
    def define() -> type[Objective]:
        exec(
            "class Anew(SimCLR):\n    name = 'anew'\n    recipes = {}",
            module.__dict__,
        )
        return module.Anew  # type: ignore[no-any-return]

    module = types.ModuleType("notebook")
    module.__dict__["SimCLR"] = SimCLR
    sys.modules["notebook"] = module
    try:
        first = define()
        assert registry.method("anew")[0] is first
        assert registry.method("anew+vicreg")[0].parts[0].objective is first  # type: ignore[attr-defined]
        second = define()
        assert registry.method("anew")[0] is second
        assert registry.method("anew+vicreg")[0].parts[0].objective is second  # type: ignore[attr-defined]
    finally:
        del sys.modules["notebook"]


def test_a_name_of_ours_is_not_given_away() -> None:
    class Mine(SimCLR):
        name = "vicreg"
        recipes = {}

    with pytest.raises(LabelfreeError, match=r"Mine, is taken"):
        registry.method("vicreg")
    Mine.name = "mine"
    assert registry.method("vicreg")[0] is VICReg


@pytest.mark.parametrize("name", ["simcrl", "mea", "rotatoin"])
def test_an_unknown_method_names_the_nearest(name: str) -> None:
    with pytest.raises(LabelfreeError, match="Did you mean"):
        registry.method(name)


def test_an_encoder_of_another_kind_of_data_is_refused_with_what_fits() -> None:
    series = registry.modalities()["series"]()  # type: ignore[abstract]
    with pytest.raises(Refusal, match=r"for audio, image, video, not for series.*Use .*dilated"):
        registry.build_encoder("timm:resnet18", series)


def test_an_unknown_size_names_those_there_are() -> None:
    with pytest.raises(LabelfreeError, match="nano, tiny, small, base"):
        registry.build_encoder("transformer:huge", registry.modalities()["series"]())  # type: ignore[abstract]
