"""Writes docs/reference.md from the registry and the settings classes: `python docs/make_reference.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from labelfree import catalogue, registry
from labelfree.settings import Settings
from labelfree.tasks.classifier import FinetuneSettings
from labelfree.training.settings import TrainSettings

#: How a default that is an empty word, or no words, is written.
EMPTY = '""'
TARGET = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Written by `python docs/make_reference.py`; do not edit it by hand.

Settings are given as `key=value` on the command line, as keywords in Python, or in a `--config` file. A name that two
parts share is written with its owner: `image.size=32`.
"""


def reference() -> str:
    """The whole page."""
    tuned = "Of `labelfree finetune`, and of the fine-tuned networks of `labelfree evaluate`."
    engine = f"## Engine\n\nShared by every method.\n\n{settings_table(TrainSettings)}\n"
    finetune = f"## Fine-tuning\n\n{tuned}\n\n{settings_table(FinetuneSettings)}\n"
    return "\n".join([HEAD, methods(), encoders(), engine, finetune, modalities(), objectives()]).rstrip() + "\n"


def methods() -> str:
    entries = catalogue.methods()
    rows = [[f"`{e['name']}`", f"`{e['objective']}`", ", ".join(e["modalities"]), cell(e["about"])] for e in entries]
    return f"## Methods\n\n{table(['method', 'objective', 'kinds of data', 'what it is, and its source'], rows)}\n"


def encoders() -> str:
    rows = []
    for entry in catalogue.encoders():
        variants = ", ".join(f"`{entry['name']}:{variant}`" for variant in entry["variants"]) or f"`{entry['name']}`"
        rows.append([variants, ", ".join(entry["modalities"]), cell(entry["about"])])
    return f"## Encoders\n\n{table(['encoder', 'kinds of data', 'what it is'], rows)}\n"


def modalities() -> str:
    parts = []
    for name, cls in registry.modalities().items():
        offers = ", ".join(need.name.lower() for need in sorted(cls.offers, key=lambda need: need.name))
        parts.append(f"### `{name}`\n\n{about(cls)}\n\nOffers: {offers}.\n\n{settings_table(cls.settings_class)}\n")
    return "## Kinds of data\n\n" + "\n".join(parts)


def objectives() -> str:
    parts = []
    for name, cls in registry.objectives().items():
        defaults = ", ".join(f"`{key}={value}`" for key, value in cls.defaults.items())
        text = f"### `{name}`\n\n{about(cls)}\n\n"
        text += f"Engine's settings, unless you say otherwise: {defaults}.\n\n" if defaults else ""
        parts.append(f"{text}{settings_table(cls.settings_class)}\n")
        for recipe_name, recipe in cls.recipes.items():
            own = {**recipe.settings, **recipe.training, **recipe.options}
            own |= {"encoder": recipe.encoder} if recipe.encoder else {}
            words = ", ".join(f"`{key}={catalogue.written(value)}`" for key, value in own.items())
            parts.append(f"Recipe `{recipe_name}`: {words or 'as it is'}. {cell(recipe.source)}.\n")
    return "## Objectives\n\n" + "\n".join(parts)


def about(cls: type) -> str:
    """The class's documentation as one paragraph a paragraph."""
    text = inspect.cleandoc(cls.__doc__ or "").split("\n\nArgs:")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def settings_table(cls: type[Settings]) -> str:
    entries = catalogue.settings_of(cls, cls.__name__)
    rows = [
        [f"`{e['setting']}`", f"`{bars(e['type'])}`", f"`{bars(e['default']) or EMPTY}`", cell(e["about"])]
        for e in entries
    ]
    return table(["setting", "type", "default", "meaning"], rows) if rows else "No settings."


def bars(text: str) -> str:
    """A text whose bars do not end a cell."""
    return text.replace("|", "\\|")


def cell(text: str) -> str:
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"'{TARGET}' is written.")
