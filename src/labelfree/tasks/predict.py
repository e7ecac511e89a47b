"""Predictions of a fine-tuned model as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labelfree.files import TABLES, writable, write_table
from labelfree.tasks.classifier import class_probabilities
from labelfree.tasks.finetune import Model


def predict(
    model: Model | str | Path,
    source: Any,
    out: str | Path,
    force: bool = False,
    probabilities: bool = False,
    accelerator: str = "auto",
) -> tuple[int, int]:
    """Write `name`, `prediction` and `confidence` of every sample; all but the name empty where one cannot be read.

    Args:
        model: a fine-tuned model, or its folder.
        source: what to classify.
        out: .csv, .parquet or .jsonl file.
        force: replace the file.
        probabilities: also write those of all classes, in columns `p:` and the class.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Returns:
        How many samples have a prediction, and how many cannot be read; the table has a row for each of both.

    Raises:
        LabelfreeError: another kind of file, or one that exists.
    """
    import pyarrow as pa

    path = writable(out, force, TABLES)
    model = model if isinstance(model, Model) else Model.load(model)
    dataset = model.open(source)
    found = class_probabilities(model.network, model.modality, dataset, accelerator=accelerator)
    names = model.names(found).tolist()
    columns = {
        "name": [dataset.name(row) for row in range(len(dataset))],
        "prediction": pa.array(names, pa.string()),
        "confidence": pa.array(found.max(axis=1), from_pandas=True),
    }
    if probabilities:
        columns |= {f"p:{name}": pa.array(p, from_pandas=True) for name, p in zip(model.classes, found.T, strict=True)}
    write_table(columns, path, force)
    unreadable = names.count(None)
    return len(dataset) - unreadable, unreadable
