"""What a pretraining on pairs is used for as it is: naming classes in words (zero-shot), and retrieval across sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree import runtime
from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import write_table
from labelfree.needs import Need
from labelfree.tasks.labels import read_labels

if TYPE_CHECKING:
    from labelfree.data.dataset import Dataset
    from labelfree.run import Run

#: Queries that are compared with all keys at once.
CHUNK = 1024


@dataclass(frozen=True)
class Proportion:
    """A share of `count` samples with its 95 % interval (Wilson 1927)."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, hits: np.ndarray) -> Proportion:
        """Of hits (N,) bool."""
        n, p, z = len(hits), float(hits.mean()), 1.96
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return cls(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), n)


@dataclass(frozen=True)
class Direction:
    """How well one side finds the other.

    Attributes:
        query, key: names of the sides.
        recall: by K, the share of queries whose own row is among the K nearest.
        median_rank: of the own row, 1 being the nearest.
        chance: by K, the recall of guessing.
    """

    query: str
    key: str
    recall: dict[int, Proportion]
    median_rank: float
    chance: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ZeroShot:
    """Samples named in words.

    Attributes:
        side: what was looked at.
        classes: their names.
        names: of the samples.
        guess: (N,) the nearest class, -1 where a sample cannot be read or lacks the side.
        similarity: (N,) cosine with it.
        accuracy, balanced_accuracy, majority: where labels were given: of the guesses, the mean over classes, and of
            always naming the commonest class.
    """

    side: str
    classes: tuple[str, ...]
    names: list[str]
    guess: np.ndarray
    similarity: np.ndarray
    accuracy: Proportion | None = None
    balanced_accuracy: float | None = None
    majority: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The scores, without the single samples."""
        kept = ("side", "classes", "accuracy", "balanced_accuracy", "majority")
        return {key: value for key, value in asdict(self).items() if key in kept}

    def write(self, out: str | Path, force: bool = False) -> None:
        """Write `name`, `prediction` and `similarity` of every sample to a .csv, .parquet or .jsonl file.

        Raises:
            LabelfreeError: another kind of file, or one that exists.
        """
        import pyarrow as pa

        named = [None if guess < 0 else self.classes[guess] for guess in self.guess.tolist()]
        near = [None if guess < 0 else value for guess, value in zip(self.guess, self.similarity.tolist(), strict=True)]
        columns = {"name": self.names, "prediction": pa.array(named, pa.string())}
        write_table({**columns, "similarity": pa.array(near, pa.float32())}, out, force)


def sides_of(run: Run, dataset: Dataset, batch_size: int = 256) -> dict[str, np.ndarray]:
    """(N, W) float32 unit vectors of each side of every row, NaN where it is missing or cannot be read.

    Raises:
        Refusal: the run is not of pairs.
    """
    from labelfree.tasks.embed import embed

    if Need.PAIR not in run.modality.offers:
        raise Refusal(f"'{run.path}' is of {run.modality.name} data: pairs are needed.", "Pretrain on pairs first.")
    joint = embed(run.encoder, run.modality, dataset, batch_size)
    names = list(run.modality.sides)
    apart = joint.reshape(len(joint), len(names), -1)
    apart[(apart == 0).all(axis=2)] = np.nan
    return {name: apart[:, number] for number, name in enumerate(names)}


@runtime.plain_torch()
def retrieve(run: Run, source: Any, at: Sequence[int] = (1, 5, 10), batch_size: int = 256) -> list[Direction]:
    """Of each side of a row, look for every other side among those of all rows that have both.

    Args:
        run: a pretraining on pairs.
        source: rows that it has not seen.
        at: the K of R@K.
        batch_size: rows a forward pass.

    Raises:
        LabelfreeError: fewer than two rows have two sides.
    """
    sides = sides_of(run, run.open(source), batch_size)
    found = []
    for query, key in permutations(sides, 2):
        both = ~np.isnan(sides[query][:, 0]) & ~np.isnan(sides[key][:, 0])
        if both.sum() < 2:
            continue
        rank = ranks(sides[query][both], sides[key][both])
        recall = {k: Proportion.of(rank <= k) for k in at}
        chance = {k: min(1.0, k / len(rank)) for k in at}
        found.append(Direction(query, key, recall, float(np.median(rank)), chance))
    if not found:
        raise LabelfreeError(f"'{source}' has fewer than two rows with two sides.", "Name a source of pairs.")
    return found


def ranks(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(N,) the place of each query's own key among all keys by cosine, from 1; of equals, the middle."""
    found = np.empty(len(q))
    for start in range(0, len(q), CHUNK):
        similar = q[start : start + CHUNK] @ k.T
        rows = np.arange(len(similar))
        own = similar[rows, start + rows, None]
        found[start + rows] = 1 + (similar > own).sum(axis=1) + ((similar == own).sum(axis=1) - 1) / 2
    return found


@runtime.plain_torch()
def zero_shot(
    run: Run,
    source: Any,
    label: str | None = None,
    classes: Sequence[str] = (),
    prompts: Sequence[str] = ("{}",),
    batch_size: int = 256,
) -> ZeroShot:
    """Name each sample by the class whose words lie nearest (Radford et al. 2021, CLIP, §3.1.2): nothing is trained.

    Args:
        run: a pretraining on pairs of texts and something else.
        source: samples of that something else.
        label: column of the true classes, to score the guesses with.
        classes: names of the classes; those of `label` by default.
        prompts: sentences about a class, {} being its name; a class is the mean of them.
        batch_size: samples a forward pass.

    Raises:
        LabelfreeError: there are no classes, or a prompt has no place for a name.
        Refusal: the run knows no texts.
    """
    dataset = run.open(source)
    labels = None if label is None else read_labels(dataset, label, classes=classes)
    names = tuple(classes) or (labels.classes if labels is not None else ())
    if len(names) < 2:
        raise LabelfreeError("Two classes or more are needed to choose from.", "Name a label column, or the classes.")
    words = _class_vectors(run, names, prompts, batch_size)
    sides = {name: vectors for name, vectors in sides_of(run, dataset, batch_size).items() if name != "text"}
    side = max(sides, key=lambda name: np.count_nonzero(~np.isnan(sides[name][:, 0])))
    near = sides[side] @ words.T
    there = ~np.isnan(near[:, 0])
    guess = np.where(there, np.nan_to_num(near).argmax(axis=1), -1)
    similarity = near[np.arange(len(near)), guess]
    found = (side, names, [dataset.name(row) for row in range(len(dataset))], guess, similarity)
    if labels is None:
        return ZeroShot(*found)
    known = (labels.y >= 0) & there
    if not known.any():
        raise LabelfreeError(f"No labelled sample of '{source}' has a side other than text.", "Name another source.")
    y, hit = labels.y[known], guess[known] == labels.y[known]
    balanced = float(np.mean([hit[y == c].mean() for c in np.unique(y)]))
    return ZeroShot(*found, Proportion.of(hit), balanced, float(np.bincount(y).max() / len(y)))


def _class_vectors(run: Run, classes: Sequence[str], prompts: Sequence[str], batch_size: int) -> np.ndarray:
    """(C, W) unit vectors of the classes' words."""
    without = next((prompt for prompt in prompts if "{}" not in prompt), None)
    if without is not None or not prompts:
        raise LabelfreeError(f"The prompt {without!r} has no place for a class.", "Write {} where its name goes.")
    if "text" not in run.modality.sides:
        raise Refusal(f"'{run.path}' knows no texts, so classes cannot be named.", "Pretrain on pairs with texts.")
    found = []
    for prompt in prompts:
        texts = {"text": [prompt.replace("{}", name.replace("_", " ")) for name in classes]}
        found.append(sides_of(run, run.open(texts), batch_size)["text"])
    total = np.sum(found, axis=0)
    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True))
