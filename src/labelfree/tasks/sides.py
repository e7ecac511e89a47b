"""What a pretraining on pairs is used for as it is: naming classes in words (zero-shot), and retrieval across sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelfree import runtime
from labelfree.data.batch import Sample
from labelfree.data.doctor import digest, nearby
from labelfree.errors import LabelfreeError, Refusal
from labelfree.files import write_table
from labelfree.needs import Need
from labelfree.settings import whole
from labelfree.tasks.labels import read_labels
from labelfree.training.logs import say

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
    def of(cls, hits: np.ndarray, independent: int | None = None) -> Proportion:
        """Of hits (N,) bool, or probabilities of a hit; the interval is that of so many `independent` samples."""
        n, p, z = independent or len(hits), float(hits.mean()), 1.96
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return cls(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), len(hits))


@dataclass(frozen=True)
class Direction:
    """How well one side finds the other.

    Attributes:
        query, key: names of the sides.
        recall: by K, the share of queries with a key of their own row among the K nearest. Queries that are the same
            are one, and so are keys: a query has the keys of all rows that it is in.
        median_rank: of the nearest own key, 1 being the nearest of all.
        chance: by K, the recall of guessing.
        keys: how many different keys were looked among.
    """

    query: str
    key: str
    recall: dict[int, Proportion]
    median_rank: float
    chance: dict[int, float]
    keys: int

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
        notes: what was not scored, in words.
    """

    side: str
    classes: tuple[str, ...]
    names: list[str]
    guess: np.ndarray
    similarity: np.ndarray
    accuracy: Proportion | None = None
    balanced_accuracy: float | None = None
    majority: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The scores, without the single samples."""
        kept = ("side", "classes", "accuracy", "balanced_accuracy", "majority", "notes")
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


def sides_of(run: Run, dataset: Dataset, batch_size: int = 256, accelerator: str = "auto") -> dict[str, np.ndarray]:
    """(N, W) float32 unit vectors of each side of every row, NaN where it is missing or cannot be read.

    Raises:
        Refusal: the run is not of pairs.
    """
    from labelfree.tasks.embed import embed

    if Need.PAIR not in run.modality.offers:
        raise Refusal(f"'{run.path}' is of {run.modality.name} data: pairs are needed.", "Pretrain on pairs first.")
    joint = embed(run.encoder, run.modality, dataset, batch_size, accelerator=accelerator)
    names = list(run.modality.sides)
    apart = joint.reshape(len(joint), len(names), -1)
    apart[(apart == 0).all(axis=2)] = np.nan
    return {name: apart[:, number] for number, name in enumerate(names)}


@runtime.plain_torch()
def retrieve(
    run: Run, source: Any, at: Sequence[int] = (1, 5, 10), batch_size: int = 256, accelerator: str = "auto"
) -> list[Direction]:
    """Of each side of a row, look for every other side among those of all rows that have both.

    Args:
        run: a pretraining on pairs.
        source: rows that it has not seen.
        at: the K of R@K.
        batch_size: rows a forward pass.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: fewer than two rows have two sides; numbers out of range.
    """
    at = [whole("at", k, 1) for k in at]
    dataset = run.open(source)
    sides = sides_of(run, dataset, batch_size, accelerator)
    same = _same(dataset, list(sides))
    found = []
    for query, key in permutations(sides, 2):
        both = ~np.isnan(sides[query][:, 0]) & ~np.isnan(sides[key][:, 0])
        if both.sum() < 2:
            continue
        better, ties, own = ranks(sides[query][both], sides[key][both], same[query][both], same[key][both])
        keys = len(np.unique(same[key][both]))
        # queries with the same key are found together, or are not
        recall = {k: Proportion.of(hits(better, ties, k), min(len(better), keys)) for k in at}
        chance = {k: _by_chance(own, keys, k) for k in at}
        found.append(Direction(query, key, recall, float(np.median(better + (ties + 1) / 2)), chance, keys))
    if not found:
        raise LabelfreeError(f"'{source}' has fewer than two rows with two sides.", "Name a source of pairs.")
    return found


def _same(dataset: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """For each side, (N,) numbers that are equal where what it holds is; -1 where it is missing."""
    marks: dict[str, dict[bytes, int]] = {name: {} for name in names}
    found = {name: np.full(len(dataset), -1) for name in names}
    for row, item in enumerate(nearby(dataset, range(len(dataset)))):
        parts = item.parts if isinstance(item, Sample) else {}
        for name in parts:
            found[name][row] = marks[name].setdefault(digest(parts[name]), len(marks[name]))
    return found


def ranks(
    q: np.ndarray, k: np.ndarray, same_q: np.ndarray | None = None, same_k: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where among all keys the nearest of its own is, by cosine, for each query that differs from the others.

    Args:
        q, k: (N, W) unit vectors, tied by row.
        same_q, same_k: (N,) equal where two queries, or keys, are the same; none are by default.

    Returns:
        (Q,) how many keys are nearer; (Q,) how many are as near, the own one among them; (Q,) how many are its own.
    """
    each = np.arange(len(q))
    queries, query_of = np.unique(each if same_q is None else same_q, return_index=True, return_inverse=True)[1:]
    keys, key_of = np.unique(each if same_k is None else same_k, return_index=True, return_inverse=True)[1:]
    better, ties, count = (np.empty(len(queries), dtype=np.int64) for _ in range(3))
    order = np.argsort(query_of, kind="stable")
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        similar = q[queries[rows]] @ k[keys].T
        mine = np.zeros(similar.shape, dtype=bool)
        here = order[slice(*np.searchsorted(query_of[order], (start, start + len(similar))))]
        mine[query_of[here] - start, key_of[here]] = True
        nearest = np.where(mine, similar, -np.inf).max(axis=1, keepdims=True)
        better[rows] = (similar > nearest).sum(axis=1)
        ties[rows] = 1 + ((similar == nearest) & ~mine).sum(axis=1)
        count[rows] = mine.sum(axis=1)
    return better, ties, count


def hits(better: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """(Q,) probability that the own key is among the k nearest, where chance settles between equals."""
    return np.clip((k - better) / ties, 0.0, 1.0)


def _by_chance(own: np.ndarray, keys: int, k: int) -> float:
    """The probability that of k keys drawn from all one is a query's own, of which it has `own` (Q,)."""
    drawn = np.arange(min(k, keys))
    others = np.clip((keys - own[:, None] - drawn) / (keys - drawn), 0.0, 1.0)
    return float(1 - others.prod(axis=1).mean())


@runtime.plain_torch()
def zero_shot(
    run: Run,
    source: Any,
    label: str | None = None,
    classes: Sequence[str] = (),
    prompts: Sequence[str] = ("{}",),
    batch_size: int = 256,
    accelerator: str = "auto",
) -> ZeroShot:
    """Name each sample by the class whose words lie nearest (Radford et al. 2021, CLIP, §3.1.2): nothing is trained.

    Args:
        run: a pretraining on pairs of texts and something else.
        source: samples of that something else.
        label: column of the true classes, to score the guesses with.
        classes: names of the classes; those of `label` by default.
        prompts: sentences about a class, {} being its name; a class is the mean of them.
        batch_size: samples a forward pass.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: there are no classes, or a prompt has no place for a name.
        Refusal: the run knows no texts.
    """
    dataset = run.open(source)
    labels = None if label is None else read_labels(dataset, label, classes=classes)
    names = tuple(classes) or (labels.classes if labels is not None else ())
    if len(names) < 2:
        raise LabelfreeError("Two classes or more are needed to choose from.", "Name a label column, or the classes.")
    vectors_of = partial(sides_of, run, batch_size=batch_size, accelerator=accelerator)
    words = _class_vectors(run, names, prompts, vectors_of)
    sides = {name: vectors for name, vectors in vectors_of(dataset).items() if name != "text"}
    side = max(sides, key=lambda name: np.count_nonzero(~np.isnan(sides[name][:, 0])))
    near = sides[side] @ words.T
    there = ~np.isnan(near[:, 0])
    guess = np.where(there, np.nan_to_num(near).argmax(axis=1), -1)
    similarity = near[np.arange(len(near)), guess]
    found = (side, names, [dataset.name(row) for row in range(len(dataset))], guess, similarity)
    if labels is None:
        return ZeroShot(*found)
    for note in labels.notes:
        say(note)
    known = (labels.y >= 0) & there
    if not known.any():
        raise LabelfreeError(f"No labelled sample of '{source}' has a side other than text.", "Name another source.")
    y, hit = labels.y[known], guess[known] == labels.y[known]
    balanced = float(np.mean([hit[y == c].mean() for c in np.unique(y)]))
    return ZeroShot(*found, Proportion.of(hit), balanced, float(np.bincount(y).max() / len(y)), labels.notes)


def _class_vectors(
    run: Run, classes: Sequence[str], prompts: Sequence[str], vectors_of: Callable[[Dataset], dict[str, np.ndarray]]
) -> np.ndarray:
    """(C, W) unit vectors of the classes' words."""
    without = next((prompt for prompt in prompts if "{}" not in prompt), None)
    if without is not None or not prompts:
        raise LabelfreeError(f"The prompt {without!r} has no place for a class.", "Write {} where its name goes.")
    if "text" not in run.modality.sides:
        raise Refusal(f"'{run.path}' knows no texts, so classes cannot be named.", "Pretrain on pairs with texts.")
    found = []
    for prompt in prompts:
        texts = {"text": [prompt.replace("{}", name.replace("_", " ")) for name in classes]}
        found.append(vectors_of(run.open(texts))["text"])
    total = np.sum(found, axis=0)
    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True))
