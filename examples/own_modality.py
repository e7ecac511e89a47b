"""A kind of data of one's own: rows of measurements, whose views are corrupted as in SCARF (Bahri et al. 2022)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import labelfree
from labelfree import Batch, Dataset, Draw, Encoder, Modality, Need, Refusal, Sample, Settings
from labelfree.data.dataset import Description
from labelfree.data.sources import hash_of
from labelfree.modalities.base import Budget, Choice


class Rows(Dataset):
    """An array (N, F), a sample a row."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, indices: Sequence[int]) -> list[Any]:
        return [Sample(self.array[i], int(i)) for i in indices]

    def describe(self) -> Description:
        return Description("rows", len(self), {"columns": str(self.array.shape[1])})

    def fingerprint(self) -> str:
        return hash_of(self.array)


class RowSettings(Settings):
    """Settings of rows."""

    corrupt: float = 0.6
    """share of a row's values that a view takes from other rows"""


class Row(Modality):
    """Rows of numbers without order."""

    name = "rows"
    settings_class = RowSettings
    offers = frozenset({Need.VIEWS})
    marginals = torch.zeros(1, 0)

    @classmethod
    def recognise(cls, source: Any) -> tuple[float, str]:
        return 0.0, ""  # an array (N, F) could be anything: it has to be named

    def open(self, source: Any) -> Rows:
        return Rows(source)

    def defaults(self, found: Description, budget: Budget) -> list[Choice]:
        return [Choice("method", "simclr", "views are all that rows offer")]

    def fit(self, dataset: Dataset) -> None:
        values = np.stack([sample.data for sample in dataset.read(range(len(dataset)))])
        scaled = (values - values.mean(axis=0)) / values.std(axis=0)
        self.mean, self.std = torch.tensor(values.mean(axis=0)), torch.tensor(values.std(axis=0))
        self.marginals = torch.tensor(scaled[:512])

    def state(self) -> dict[str, Any]:
        return {key: getattr(self, key).tolist() for key in ("mean", "std", "marginals")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for key, values in state.items():
            setattr(self, key, torch.tensor(values))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        index = torch.tensor([sample.index for sample in samples])
        return Batch(torch.from_numpy(np.stack([sample.data for sample in samples])), index)

    def prepare(self, batch: Batch) -> Batch:
        return batch.with_(data=(batch.data - self.mean.to(batch.data)) / self.std.to(batch.data))

    def view(self, batch: Batch, draw: Draw, policy: str = "contrast") -> Batch:
        x = self.prepare(batch).data
        pool = self.marginals.to(x)
        other = pool.gather(0, draw.integers("donor", len(pool), x.shape[1]))
        share = 0.0 if policy in ("light", "none") else self.settings.corrupt
        corrupt = draw.bernoulli("corrupt", share, x.shape[1])
        return batch.with_(data=torch.where(corrupt, other, x), draw=draw)

    def transformer(self, size: str, causal: bool) -> Encoder:
        raise Refusal("Rows have no tokens for a transformer.", "Give a network: encoder=nn.Sequential(...).")

    def show(self, sample: Sample) -> str:
        return " ".join(f"{value:.3g}" for value in sample.data)

    def raw_features(self, train: Dataset, others: Sequence[Dataset]) -> list[Any]:
        return [np.stack([s.data for s in part.read(range(len(part)))]) for part in (train, *others)]


def network(columns: int) -> nn.Module:
    return nn.Sequential(nn.Linear(columns, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())


def main(steps: int = 300, out: str | None = None) -> np.ndarray:
    rows = load_breast_cancer().data
    columns = rows.shape[1]
    run = labelfree.pretrain(
        rows, modality="rows", encoder=network(columns), steps=steps, batch_size=128, temperature=1.0, out=out
    )
    features = labelfree.load(run.path, encoder=network(columns)).embed(rows)
    print(f"{features.shape[0]} rows became {features.shape[1]} features each")
    return features


if __name__ == "__main__":
    main()
