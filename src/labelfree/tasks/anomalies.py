"""Anomalies without labels: how strange the features of a sample are beside those of a reference.

Legend: N samples of the reference, M samples that are asked about, D width of the features, K directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from labelfree import runtime
from labelfree.data.spread import spaced
from labelfree.errors import LabelfreeError, nearest
from labelfree.files import is_address, write_table
from labelfree.tasks.embed import embed, in_parts
from labelfree.training.logs import say

if TYPE_CHECKING:
    from labelfree.run import Run

How = Literal["distance", "neighbours"]
HOW: tuple[How, ...] = ("distance", "neighbours")
#: Samples of the reference that are kept, and those of them that are neighbours.
LEARNT, KEPT = 50_000, 5000
#: Which nearest neighbour is the measure, and the least share of the variance that a direction must have.
NEIGHBOUR, LEAST = 10, 1e-4
#: Distances that are held at a time.
AT_ONCE = 1024


def check_how(how: str) -> None:
    """Raises LabelfreeError where anomalies are not found that way."""
    if how not in HOW:
        raise LabelfreeError(f"Anomalies are not found by '{how}'.", nearest(how, HOW) or f"Use {', '.join(HOW)}.")


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
            measured, the samples of a reference no larger than D would all be equally far from its mean, and what none
            of them has would not count.
        known: (≤ KEPT, K) coordinates of samples of the reference, spread evenly over it.
        own: (N,) score of each sample of the reference, by what the others are like, NaN where it is not finite: beside
            what was learnt from a sample, it is far too ordinary.
        usual: those scores, ascending.
    """

    how: How
    mean: torch.Tensor
    whiten: torch.Tensor
    known: torch.Tensor
    own: np.ndarray
    usual: np.ndarray

    @classmethod
    def learn(cls, features: np.ndarray, how: How = "distance") -> Ordinary:
        """From (N, D) features; rows that are not finite (unreadable samples) are left out.

        Raises:
            LabelfreeError: no such way, or fewer than two samples.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        check_how(how)
        finite = np.isfinite(features).all(axis=1)
        x = features[finite]
        if len(x) < 2:
            raise LabelfreeError(f"The reference has {len(x)} samples that can be read.", "Give at least two.")
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean
        variance, directions = np.linalg.eigh(centred.T @ centred / len(x))
        drawn = ledoit_wolf_shrinkage(centred, assume_centered=True)
        variance = (1 - drawn) * variance + drawn * variance.mean()
        varying = variance > LEAST * max(float(variance[-1]), 1e-30)
        whiten = torch.from_numpy((directions[:, varying] / np.sqrt(variance[varying])).astype(np.float32))
        places = spaced(len(x), KEPT)
        few = torch.from_numpy(centred[places].astype(np.float32)) @ whiten
        found = cls(how, torch.from_numpy(mean.astype(np.float32)), whiten, few, np.zeros(0), np.zeros(0))
        own = np.full(len(features), np.nan, dtype=np.float32)
        own[finite] = found._left_out(centred, places, (1 - drawn) / (len(x) - 1))
        return replace(found, own=own, usual=np.sort(own[finite]))

    def _left_out(self, centred: np.ndarray, places: np.ndarray, weight: float) -> np.ndarray:
        """(N,) how strange each sample of the reference is to the others, as if it were none of it.

        Without it, the inverse of the covariance is that of all and a product of rank one (Sherman & Morrison 1950).

        Args:
            centred: (N, D) features less their mean.
            places: (≤ KEPT,) of the samples that are `known`.
            weight: of the product of a sample with itself in the covariance.
        """
        out = []
        for start in range(0, len(centred), AT_ONCE):
            z = torch.from_numpy(centred[start : start + AT_ONCE].astype(np.float32)) @ self.whiten
            size = z.square().sum(dim=1, keepdim=True)
            left = (1 - weight * size).clamp_min(1e-6)
            if self.how == "distance":
                out.append((size / left).sqrt()[:, 0] * len(centred) / (len(centred) - 1))
                continue
            apart = torch.cdist(z, self.known).square() + weight * (size - z @ self.known.T).square() / left
            # none is its own neighbour
            apart[torch.arange(start, start + len(z))[:, None] == torch.from_numpy(places)] = torch.inf
            out.append(apart.kthvalue(min(NEIGHBOUR, len(places) - 1), dim=1).values.sqrt())
        return torch.cat(out).numpy()

    def score(self, features: np.ndarray) -> np.ndarray:
        """(M, D) → (M,) float32: how strange; NaN where a row is not finite."""
        finite = np.isfinite(features).all(axis=1)
        out = np.full(len(features), np.nan, dtype=np.float32)
        x = torch.from_numpy(features[finite].astype(np.float32))
        out[finite] = self._strangeness((x - self.mean) @ self.whiten)
        return out

    def _strangeness(self, x: torch.Tensor) -> np.ndarray:
        if self.how == "distance":
            return x.norm(dim=1).numpy()
        neighbour = min(NEIGHBOUR, len(self.known))
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
def find_anomalies(
    run: Run, source: Any, reference: Any = None, how: How = "distance", accelerator: str = "auto"
) -> Anomalies:
    """How strange each sample of a source is to a run's encoder, without any label.

    Args:
        run: the pretraining.
        source: what to look at.
        reference: what is ordinary (a few strange samples among many do no harm); None for the source that the run was
            pretrained on, or `source` itself where that is gone.
        how: see `Ordinary`.
        accelerator: where to compute, as in pretraining: auto, cpu, cuda or mps.

    Raises:
        LabelfreeError: anything that the user can mend.
    """
    check_how(how)
    dataset, ordinary = run.open(source), _reference(run, source, reference)
    other = dataset if ordinary is source else run.open(ordinary)
    rows, parts = spaced(len(other), LEARNT), (run.encoder, run.modality)
    fast: dict[str, Any] = {"precision": "auto", "accelerator": accelerator}
    learnt = Ordinary.learn(embed(*parts, other, indices=rows, **fast), how)
    score = np.concatenate([learnt.score(features) for _, features in in_parts(*parts, dataset, **fast)])
    if dataset.fingerprint() == other.fingerprint():  # what was learnt from a sample does not judge it
        score[rows] = learnt.own
    return Anomalies([dataset.name(row) for row in range(len(dataset))], score, learnt.rank(score))


def _reference(run: Run, source: Any, reference: Any) -> Any:
    if reference is not None:
        return reference
    place = run.info.get("source")
    if place is not None and (is_address(place) or Path(place).exists()):
        return place
    say("The source of the pretraining is not there any more: the samples are compared with one another.")
    return source
