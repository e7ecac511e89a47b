"""What a network makes of every sample of a source: features as an array, or as a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.cache import Cached
from labelfree.data.loader import batches
from labelfree.encoders.base import Encoder
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Dataset, Modality
from labelfree.training import runtime

if TYPE_CHECKING:
    from labelfree.run import Run

#: Samples that a Parquet row group holds: what has to be in memory at a time.
CHUNK = 8192


@torch.inference_mode()
def apply(
    network: nn.Module,
    output: Callable[[Batch], Tensor],
    width: int,
    modality: Modality,
    dataset: Dataset,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    precision: str = "32",
) -> np.ndarray:
    """What `output` makes of the unaugmented view of each sample; the network is left as it was found.

    Args:
        network: what `output` runs; in evaluation mode and on the device meanwhile.
        output: a view of B samples → (B, width).
        width: numbers a sample.
        modality: makes the views (`prepare`).
        dataset: an opened source.
        batch_size: samples a forward pass.
        device: where to compute; the best there is by default.
        indices: places in the dataset; all by default.
        precision: "32", or "bf16" for mixed precision.

    Returns:
        (N, width) float32, NaN in rows whose sample cannot be read. Where the network remembers, a sample's row is what
        it makes of it after all the samples before it in its source.
    """
    where = torch.device(device) if device is not None else runtime.device()
    places = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    memories = [part for part in network.modules() if isinstance(part, Encoder) and part.remembers]
    wanted = np.arange(len(places))
    if memories:
        dataset, rows = dataset.origin()
        wanted = rows[places]
        places = np.arange(wanted.max(initial=-1) + 1)
    elif (sizes := dataset.sizes()) is not None:  # little padding
        order = np.argsort(sizes[places], kind="stable")
        places, wanted = places[order], np.argsort(order)
    was_training = network.training
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval().to(where)
    for memory in memories:
        memory.reset()
    out = np.full((len(places), width), np.nan, dtype=np.float32)
    for start in range(0, len(places), batch_size):
        chunk = places[start : start + batch_size]
        for raw in batches(dataset, modality, batch_size, chunk):
            view = modality.prepare(raw.to(where))
            with runtime.autocast(where, precision):
                result = output(view)
            out[start + _rows(dataset, chunk, raw.index.numpy())] = result.float().cpu().numpy()
            for memory in memories:
                memory.remember(view)
    for memory in memories:
        memory.reset()
    network.train(was_training).to(home)
    return out[wanted]


def _rows(dataset: Dataset, chunk: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Which of the places asked for a raw batch holds; a cached dataset knows only samples that can be read."""
    if isinstance(dataset, Cached) or len(index) == len(chunk):
        return np.arange(len(chunk))
    order = np.argsort(chunk, kind="stable")
    return order[np.searchsorted(chunk, index, sorter=order)]


def embed(encoder: Encoder, modality: Modality, dataset: Dataset, batch_size: int = 256, **options: Any) -> np.ndarray:
    """(N, D) float32 pooled features of every sample, NaN rows where one cannot be read.

    Args:
        encoder: any encoder.
        modality: of its data.
        dataset: an opened source.
        batch_size: samples a forward pass.
        **options: `device`, `indices` and `precision` of `apply`.
    """
    return apply(encoder, lambda view: encoder(view).pooled, encoder.dim, modality, dataset, batch_size, **options)


def write_embeddings(run: Run, source: Any, file: str | Path, force: bool = False, batch_size: int = 256) -> int:
    """Write `name` and `feature` (a list of D float32, null where unreadable) of every sample to a Parquet file.

    Returns:
        The number of samples written.

    Raises:
        LabelfreeError: the file exists and `force` is false, or it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = writable(file, force)
    dataset = run.open(source)
    schema = pa.schema([("name", pa.string()), ("feature", pa.list_(pa.float32(), run.encoder.dim))])
    beside = path.with_name(path.name + ".part")
    try:
        with parquet.ParquetWriter(beside, schema) as writer:
            for start in range(0, len(dataset), CHUNK):
                rows = range(start, min(start + CHUNK, len(dataset)))
                features = embed(run.encoder, run.modality, dataset, batch_size, indices=np.asarray(rows))
                values = [None if np.isnan(feature[0]) else feature for feature in features]
                writer.write_table(pa.table([[dataset.name(row) for row in rows], values], schema=schema))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise LabelfreeError(f"'{path}' could not be written: {error.strerror or error}.", "Free space.") from None
    return len(dataset)


def writable(file: str | Path, force: bool) -> Path:
    """The path of a file to be written, its folder made.

    Raises:
        LabelfreeError: it exists and `force` is false.
    """
    path = Path(file)
    if path.exists() and not force:
        raise LabelfreeError(f"'{path}' exists already.", "Name another file, or allow it to be replaced with --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
