"""The deliverable of a pretraining: an encoder and its kind of data, as weights and as how to build them again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from labelfree import distributed, registry, runtime
from labelfree.encoders.base import Encoder
from labelfree.encoders.custom import Custom
from labelfree.errors import LabelfreeError
from labelfree.files import read_json, replacing, write_json
from labelfree.modalities.base import Modality
from labelfree.tensors import read_tensors, write_tensors

#: How `encoder_config` describes an encoder; another number where an older reader would not understand it.
FORMAT = 1


def encoder_config(encoder: Encoder, modality: Modality, spec: str, causal: bool, sha256: str) -> dict[str, Any]:
    """How to build an encoder and its modality again, as JSON-ready values; `sha256` is that of the weights' file."""
    return {
        "format": FORMAT,
        "sha256": sha256,
        "encoder": {
            "spec": encoder.spec or spec,
            "causal": causal,
            "dim": encoder.dim,
            "shape": getattr(encoder, "shape", None),
        },
        "modality": {
            "name": modality.name,
            "settings": modality.settings.model_dump(mode="json"),
            "state": modality.state(),
        },
    }


def build_from_config(config: Mapping[str, Any], encoder: nn.Module | None = None) -> tuple[Modality, Encoder]:
    """The modality (with its statistics) and the encoder, freshly initialised, that `encoder_config` described.

    Args:
        config: what `encoder_config` gave.
        encoder: the user's own module, where it was one (its code is never in a file); a copy of it is used, so that
            what is opened with one module does not share its weights.

    Raises:
        LabelfreeError: it is of another make.
    """
    if config.get("format") != FORMAT:
        made = config.get("format", "unknown")
        raise LabelfreeError(f"The encoder is of format {made}: expected {FORMAT}.", "Use the version that wrote it.")
    kind = registry.find("modality", registry.modalities(), config["modality"]["name"])
    modality = kind(kind.settings_class.read(config["modality"]["settings"], kind.name))
    modality.load_state(config["modality"]["state"])
    made, encoder = config["encoder"], copy.deepcopy(encoder)
    if made["shape"] is not None and encoder is not None and not isinstance(encoder, Encoder):
        return modality, Custom(encoder, made["dim"], made["shape"])
    spec = encoder if encoder is not None else made["spec"]
    return modality, registry.build_encoder(spec, modality, made["causal"])


def save_encoder(
    folder: Path,
    encoder: Encoder,
    modality: Modality,
    spec: str,
    causal: bool,
    heads: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write the deliverable: weights as safetensors, and how to build them again as JSON.

    Wherever it is cut short, the folder never holds parts of two encoders; between two renames it is not there, and the
    old one lies beside it. All processes must call it, since weights may lie in shards; the first one writes.

    Args:
        heads: modules of the objective that are kept beside the encoder, by their names in it.
    """
    weights = distributed.whole_state(encoder)
    states = {name: distributed.whole_state(module) for name, module in (heads or {}).items()}
    if distributed.rank() != 0:
        return
    with replacing(folder) as beside:
        beside.mkdir()
        digest = write_tensors(beside / "model.safetensors", weights)
        config = encoder_config(encoder, modality, spec, causal, digest)
        if states:
            kept = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
            config["heads"] = {"sha256": write_tensors(beside / "heads.safetensors", kept)}
        write_json(beside / "config.json", config)


@runtime.plain_torch()
def load_encoder(folder: Path, encoder: nn.Module | None = None) -> tuple[Modality, Encoder]:
    """The modality and the encoder (evaluation mode, CPU) that `save_encoder` wrote; `encoder` as `build_from_config`.

    Raises:
        LabelfreeError: missing, altered, or of another make.
    """
    config = read_json(folder / "config.json")
    modality, built = build_from_config(config, encoder)
    built.load_state_dict(read_tensors(folder / "model.safetensors", config["sha256"]))
    return modality, built.eval()
