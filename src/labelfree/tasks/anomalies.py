"""Anomalies without labels: how strange the features of a sample are beside those of a reference.

Legend: N samples of the reference, M samples that are asked about, D width of the features, K directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, nearest
from labelfree.files import is_address, write_table
from labelfree.tasks.embed import embed
from labelfree.training.logs import say

if TYPE_CHECKING:
    from labelfree.data.dataset import Dataset
    from labelfree.run import Run

How = Literal["distance", "neighbours"]
HOW: tuple[How, ...] = ("distance", "neighbours")
#: Samples of the reference that are kept, and those of them that are neighbours.
LEARNT, KEPT = 50_000, 5000
#: Which nearest neighbour is the measure, and the least share of the variance that a direction must have.
NEIGHBOUR, LEAST = 10, 1e-4
#: Distances that are held at a time.
AT_ONCE = 1024


@dataclass(frozen=True)
class Ordinary:
    """What the features of a reference are like.

    Attributes:
        how: "distance" from the mean, in deviations along each direction of the reference (Mahalanobis; Lee et al.
            2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples", §2.1), or distance to the
            tenth of its nearest "neighbours" in the same units (Ramaswamy et al. 2000, §3).
        mean: (D,) of the reference.
        whiten: (D, K) features less their mean → coordinates of variance 1, along directions that vary at all.
            Variances are drawn towards their mean, the more the fewer samples there are (Ledoit & Wolf 2004): as
            measured, the samples of a reference no larger than D would all be equally far from its mean.
        known: (≤ KEPT, K) coordinates of samples of the reference, spread evenly over it.
        usual: scores of those samples, ascending.
    """

    how: How
    mean: torch.Tensor
    whiten: torch.Tensor
    known: torch.Tensor
    usual: np.ndarray

    @classmethod
    def learn(cls, features: np.ndarray, how: How = "distance") -> Ordinary:
        """From (N, D) features; rows that are not finite (unreadable samples) are left out.

        Raises:
            LabelfreeError: no such way, or fewer than two samples.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        if how not in HOW:
            raise LabelfreeError(f"Anomalies are not found by '{how}'.", nearest(how, HOW) or f"Use {', '.join(HOW)}.")
        x = features[np.isfinite(features).all(axis=1)]
        if len(x) < 2:
            raise LabelfreeError(f"The reference has {len(x)} samples that can be read.", "Give at least two.")
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean
        variance, directions = np.linalg.eigh(centred.T @ centred / len(x))
        varying = variance > LEAST * max(float(variance[-1]), 1e-30)
        drawn = ledoit_wolf_shrinkage(centred, assume_centered=True)
        variance = (1 - drawn) * variance + drawn * variance.mean()
        whiten = torch.from_numpy((directions[:, varying] / np.sqrt(variance[varying])).astype(np.float32))
        few = torch.from_numpy(centred[spaced(len(x), KEPT)].astype(np.float32)) @ whiten
        found = cls(how, torch.from_numpy(mean.astype(np.float32)), whiten, few, np.zeros(0))
        # each of them is its own nearest neighbour, which does not count
        usual = np.sort(found._strangeness(few, NEIGHBOUR + 1))
        return cls(how, found.mean, whiten, few, usual)

    def score(self, features: np.ndarray) -> np.ndarray:
        """(M, D) → (M,) float32: how strange; NaN where a row is not finite."""
        finite = np.isfinite(features).all(axis=1)
        out = np.full(len(features), np.nan, dtype=np.float32)
        x = torch.from_numpy(features[finite].astype(np.float32))
        out[finite] = self._strangeness((x - self.mean) @ self.whiten, NEIGHBOUR)
        return out

    def _strangeness(self, x: torch.Tensor, neighbour: int) -> np.ndarray:
        if self.how == "distance":
            return x.norm(dim=1).numpy()
        neighbour = min(neighbour, len(self.known))
        pieces = [torch.cdist(piece, self.known).kthvalue(neighbour, dim=1).values for piece in x.split(AT_ONCE)]
        return torch.cat(pieces).numpy() if pieces else np.zeros(0, dtype=np.float32)

    def rank(self, scores: np.ndarray) -> np.ndarray:
        """(M,) share of the reference that is less strange, NaN where the score is."""
        share = np.searchsorted(self.usual, scores, side="left") / len(self.usual)
        return np.where(np.isnan(scores), np.nan, share).astype(np.float32)


@dataclass(frozen=True)
class Anomalies:
    """Scores of a source.

    Attributes:
        names: of the samples.
        score: (M,) how strange, NaN where one cannot be read.
        share: (M,) share of the reference that is less strange.
    """

    names: list[str]
    score: np.ndarray
    share: np.ndarray

    def strangest(self, count: int) -> np.ndarray:
        """Places of the strangest samples, the strangest first."""
        return np.argsort(-np.nan_to_num(self.score, nan=-np.inf), kind="stable")[:count]

    def write(self, file: str | Path, force: bool = False) -> None:
        """Write `name`, `score` and `share` as .csv, .parquet or .jsonl, in the order of the source.

        Raises:
            LabelfreeError: another kind of file, or one that exists and `force` is false.
        """
        import pyarrow as pa

        numbers = {"score": self.score, "share": self.share}
        columns = {key: pa.array(values, pa.float32(), from_pandas=True) for key, values in numbers.items()}
        write_table({"name": self.names, **columns}, file, force)


@runtime.plain_torch()
def find_anomalies(run: Run, source: Any, reference: Any = None, how: How = "distance") -> Anomalies:
    """How strange each sample of a source is to a run's encoder, without any label.

    Args:
        run: the pretraining.
        source: what to look at.
        reference: what is ordinary (a few strange samples among many do no harm); None for the source that the run was
            pretrained on, or `source` itself where that is gone.
        how: see `Ordinary`.

    Raises:
        LabelfreeError: anything that the user can mend.
    """
    dataset, ordinary = run.open(source), _reference(run, source, reference)
    other = dataset if ordinary is source else run.open(ordinary)
    learnt = Ordinary.learn(_features(run, other, spaced(len(other), LEARNT)), how)
    score = learnt.score(_features(run, dataset, np.arange(len(dataset))))
    return Anomalies([dataset.name(row) for row in range(len(dataset))], score, learnt.rank(score))


def _reference(run: Run, source: Any, reference: Any) -> Any:
    if reference is not None:
        return reference
    place = run.info.get("source")
    if place is not None and (is_address(place) or Path(place).exists()):
        return place
    say("The source of the pretraining is not there any more: the samples are compared with one another.")
    return source


def _features(run: Run, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    return embed(run.encoder, run.modality, dataset, indices=rows, precision="auto")
