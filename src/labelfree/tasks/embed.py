"""What a network makes of every sample of a source: features as an array, or as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from labelfree import runtime
from labelfree.data.batch import Batch
from labelfree.data.dataset import Dataset
from labelfree.data.loader import evenly, rows_and_batches
from labelfree.encoders.base import Encoder, evaluating
from labelfree.files import replacing, writable
from labelfree.modalities.base import Modality
from labelfree.settings import whole

if TYPE_CHECKING:
    from labelfree.run import Run
    from labelfree.tasks.finetune import Model

#: Samples whose features are in memory at a time, and in a Parquet row group.
CHUNK = 8192
#: Samples as long as those of a training, of which a forward pass takes at most as much.
AT_ONCE = 64
#: Kinds of files that features are written to.
FORMATS = (".parquet", ".csv", ".npy")


@runtime.plain_torch()
@torch.inference_mode()
def apply(
    network: nn.Module,
    output: Callable[[Batch], Tensor],
    width: int,
    modality: Modality,
    dataset: Dataset,
    batch_size: int = 256,
    accelerator: str = "auto",
    indices: Sequence[int] | np.ndarray | None = None,
    precision: str = "32",
) -> np.ndarray:
    """What `output` makes of the unaugmented view of each sample; the network is left as it was found. Threads that ask
    for the same network wait for each other.

    Args:
        network: what `output` runs; in evaluation mode and on the device meanwhile.
        output: a view of B samples → (B, width).
        width: numbers a sample.
        modality: makes the views (`prepare`).
        dataset: an opened source.
        batch_size: samples a forward pass; fewer of those that are longer than a training's.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.
        indices: places in the dataset; all by default.
        precision: "32", since what it gives is kept, and told apart by little; "auto" for the fastest, where only
            scores are made of it; or "bf16".

    Returns:
        (N, width) float32, NaN in rows whose sample cannot be read. Where the network remembers, a sample's row is what
        it makes of it after all batches before its own in its source.
    """
    where, batch_size = runtime.checked_device(accelerator), whole("batch_size", batch_size, 1)
    places = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    memories = _memories(network)
    wanted, sizes = np.arange(len(places)), None
    if memories:
        dataset, rows = dataset.origin()
        wanted = rows[places]
        places = np.arange(wanted.max(initial=-1) + 1)
    elif (every := dataset.sizes()) is not None:  # little padding
        order = np.argsort(every[places], kind="stable")
        places, wanted = places[order], np.argsort(order)
        sizes = every[places]
    out = np.full((len(places), width), np.nan, dtype=np.float32)
    with lent(network, where):
        parts = together(len(places), batch_size, sizes, modality)
        for rows, raw in rows_and_batches(dataset, modality, parts, places):
            view = modality.prepare(raw.to(where))
            with runtime.autocast(where, precision):
                result = _in_room(output, view)
            out[rows] = result.float().cpu().numpy()
            for memory in memories:
                memory.remember(view)
    return out[wanted]


def _in_room(output: Callable[[Batch], Tensor], view: Batch) -> Tensor:
    """What `output` makes of a view; of its halves one after the other, where a GPU has no room for all of it."""
    with suppress(torch.OutOfMemoryError):
        return output(view)
    if len(view) == 1:
        return output(view)
    middle = len(view) // 2
    return torch.cat([_in_room(output, view[half]) for half in (slice(middle), slice(middle, None))])


def _memories(network: nn.Module) -> list[Encoder]:
    return [part for part in network.modules() if isinstance(part, Encoder) and part.remembers]


@contextmanager
def lent(network: nn.Module, where: torch.device) -> Iterator[None]:
    """The network in evaluation mode on a device, with empty memories; left as it was found, whatever happens. Threads
    that ask for the same network wait for each other.
    """
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    with runtime.turn(network), evaluating(network):
        try:
            network.to(where)
            for memory in _memories(network):
                memory.reset()
            yield
        finally:
            for memory in _memories(network):
                memory.reset()
            network.to(home)


def together(count: int, batch_size: int, sizes: np.ndarray | None, modality: Modality) -> Iterator[slice]:
    """Slices of (count,) samples that fit in memory together: at most `batch_size`, which take no more than `AT_ONCE`
    of a training when their ascending `sizes` are padded to the last; or one sample.
    """
    start, most = 0, AT_ONCE * modality.training_size
    while start < count:
        stop = min(start + batch_size, count)
        if sizes is not None:
            padded = sizes[start:stop] * np.arange(1, stop - start + 1)
            stop = start + max(1, int((padded <= most).sum()))
        yield slice(start, stop)
        start = stop


def embed(encoder: Encoder, modality: Modality, dataset: Dataset, batch_size: int = 256, **options: Any) -> np.ndarray:
    """(N, D) float32 pooled features of every sample, NaN rows where one cannot be read.

    Args:
        encoder: any encoder.
        modality: of its data.
        dataset: an opened source.
        batch_size: samples a forward pass.
        **options: `accelerator`, `indices` and `precision` of `apply`.
    """
    return apply(encoder, lambda view: encoder(view).pooled, encoder.dim, modality, dataset, batch_size, **options)


def in_parts(
    encoder: Encoder, modality: Modality, dataset: Dataset, *arguments: Any, **options: Any
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a dataset and their features, some at a time, so that memory does not grow with the source.

    They come all at once where the encoder remembers, since it would begin anew with each part; further arguments as
    `embed` has them.
    """
    size = max(1, len(dataset)) if encoder.remembers else CHUNK
    for part in evenly(len(dataset), size):
        rows = np.arange(part.start, part.stop)
        yield rows, embed(encoder, modality, dataset, *arguments, indices=rows, **options)


def write_embeddings(
    run: Run | Model,
    source: Any,
    file: str | Path,
    force: bool = False,
    batch_size: int = 256,
    accelerator: str = "auto",
) -> tuple[int, int]:
    """Write the features that a run's or a fine-tuned model's encoder makes of every sample, D float32, to a file.

    A .parquet file has `name` and `feature` (a list, null where unreadable); a .csv file `name` and a column a number;
    a .npy file is an array (N, D), its rows NaN where unreadable.

    Returns:
        How many samples have features, and how many cannot be read; the file has a row for each of both.

    Raises:
        LabelfreeError: another kind of file, one that exists and `force` is false, or one that cannot be written.
    """
    path = writable(file, force, FORMATS)
    dataset, unreadable = run.open(source), 0
    with replacing(path) as beside, _writer(beside, path.suffix.lower(), len(dataset), run.encoder.dim) as write:
        for rows, features in in_parts(run.encoder, run.modality, dataset, batch_size, accelerator=accelerator):
            write([dataset.name(row) for row in rows.tolist()], features)
            unreadable += int(np.isnan(features[:, 0]).sum())
    return len(dataset) - unreadable, unreadable


@contextmanager
def _writer(file: Path, kind: str, count: int, dim: int) -> Iterator[Callable[[list[str], np.ndarray], Any]]:
    """What takes names and features (n, D), part by part, until all `count` samples are in the file."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    name = pa.field("name", pa.string())
    if kind == ".npy":
        with file.open("wb") as out:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
            np.lib.format.write_array_header_1_0(out, header)
            yield lambda names, features: out.write(features.astype("<f4").tobytes())
    elif kind == ".csv":
        schema = pa.schema([name, *((f"f{number}", pa.float32()) for number in range(dim))])
        with csv.CSVWriter(file, schema) as out:
            yield lambda names, features: out.write_table(
                pa.table([names, *(pa.array(column, from_pandas=True) for column in features.T)], schema=schema)
            )
    else:
        schema = pa.schema([name, ("feature", pa.list_(pa.float32(), dim))])
        with parquet.ParquetWriter(file, schema) as out:
            yield lambda names, features: out.write_table(
                pa.table([names, [None if np.isnan(row[0]) else row for row in features]], schema=schema)
            )
