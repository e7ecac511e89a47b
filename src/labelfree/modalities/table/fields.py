"""What training data say of each field: scales of numbers, marginals that corruption draws from; and the stem.

Legend: B samples, F fields (numbers first, then categories), D width, V numbers of a prediction for all fields.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nn_functional
from torch import Tensor, nn

from labelfree.data.batch import Batch
from labelfree.data.columns import TINY
from labelfree.data.on_device import on_device
from labelfree.errors import LabelfreeError
from labelfree.modalities.table.columns import Column, Field, column_of

#: Points at which the marginal distribution of a column is kept.
MARGINAL = 512


class Fields:
    """The fields of a table, and their statistics once `learn` has seen training data.

    Args:
        columns: those that the encoder sees.

    Attributes:
        all: the F fields, numbers first.
        order: (F,) which of the columns' own fields, one after another, each is.
        numbers: how many are numbers.
        column: (F,) int64 the number of the column that each belongs to.
        centre, scale: (numbers,) of each number.
        marginals: (F, MARGINAL) values of the training data, normalised, at even steps of the rank of a column's first
            field; those of one column are from the same rows. NaN where missing.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        every = [field for column in columns for field in column.fields()]
        self.order = sorted(range(len(every)), key=lambda i: bool(every[i].values))
        self.all: list[Field] = [every[i] for i in self.order]
        self.numbers = sum(not field.values for field in self.all)
        place = {column.name: number for number, column in enumerate(columns)}
        self.column = torch.tensor([place[field.column] for field in self.all], dtype=torch.int64)
        self.centre, self.scale = torch.zeros(self.numbers), torch.ones(self.numbers)
        self.marginals = torch.zeros(len(self.all), 0)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def sizes(self) -> list[int]:
        """Codes of each category field: its values, and 0 for any other."""
        return [len(field.values) + 1 for field in self.all[self.numbers :]]

    def learn(self, rows: np.ndarray) -> None:
        """Statistics of (N, F) raw training rows.

        Raises:
            LabelfreeError: every value is missing.
        """
        if not len(rows) or np.isnan(rows).all():
            raise LabelfreeError("Every value of the table is missing.", "There is nothing to learn from it.")
        scales = [_robust(rows[:, number]) for number in range(self.numbers)]
        self.centre, self.scale = (torch.tensor(values, dtype=torch.float32) for values in _unzip(scales))
        place = ((np.arange(MARGINAL) + 0.5) / MARGINAL * len(rows)).astype(np.int64)
        ranked = np.empty((len(self), MARGINAL), dtype=rows.dtype)
        for column in range(len(self.columns)):
            # Fields of a date, or of a text, are sorted as one: each by itself they would be those of no date.
            own = np.flatnonzero(self.column.numpy() == column)
            chosen = np.argsort(rows[:, own[0]], kind="stable")[place]
            ranked[own] = rows[np.ix_(chosen, own)].T
        self.marginals = self.normalise(torch.from_numpy(ranked.T)).T.contiguous()

    def normalise(self, x: Tensor) -> Tensor:
        """(..., F) raw → numbers centred, scaled and softly clipped to ±3; codes as they are (Holzmüller et al. 2024,
        "Better by Default", §3: robust scaling and smooth clipping).
        """
        z = (x[..., : self.numbers] - on_device(self.centre, x.device)) / on_device(self.scale, x.device)
        z = z.clamp(-1e6, 1e6)  # ±3 as good as reached, and its square is still a number
        return torch.cat([z / (1 + (z / 3).square()).sqrt(), x[..., self.numbers :]], dim=-1)

    def restore(self, x: Tensor) -> Tensor:
        """(..., F) normalised → raw, the inverse of `normalise`."""
        z = x[..., : self.numbers].double()
        z = z / (1 - (z / 3).square()).clamp_min(1e-7).sqrt()
        numbers = z * on_device(self.scale, x.device) + on_device(self.centre, x.device)
        return torch.cat([numbers.to(x.dtype), x[..., self.numbers :]], dim=-1)

    def within(self, x: Tensor) -> Tensor:
        """(..., F) normalised, no farther out than (nearly all of) the training data."""
        low, high = (ends.to(x.device) for ends in _ends(self.marginals[: self.numbers]))
        return torch.cat([torch.clamp(x[..., : self.numbers], low, high), x[..., self.numbers :]], dim=-1)

    def state(self) -> dict[str, Any]:
        """JSON-ready; the marginals are float32 in base64, since they are many."""
        packed = base64.b64encode(self.marginals.numpy().astype("<f4").tobytes()).decode()
        return {
            "columns": [column.to_json() for column in self.columns],
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
            "marginals": packed,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Fields:
        fields = cls([column_of(column) for column in state["columns"]])
        fields.centre, fields.scale = torch.tensor(state["centre"]), torch.tensor(state["scale"])
        packed = np.frombuffer(base64.b64decode(state["marginals"]), dtype="<f4")
        fields.marginals = torch.from_numpy(packed.astype(np.float32).reshape(len(fields), -1))
        return fields


def _robust(x: np.ndarray) -> tuple[float, float]:
    """Median, and the range that holds the middle half; the deviation where half of the values are one number."""
    known = x[~np.isnan(x)].astype(np.float64)
    if not len(known):
        return 0.0, 1.0
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    width = high - low if high > low else known.std()
    least = max(1e-12 * abs(float(middle)), TINY)
    return float(middle), float(width) if width > least else 1.0


def _ends(marginals: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest known value of each row; 0 where none is known."""
    known = ~marginals.isnan()
    low = marginals.masked_fill(~known, torch.inf).amin(dim=1)
    high = marginals.masked_fill(~known, -torch.inf).amax(dim=1)
    there = known.any(dim=1)
    return torch.where(there, low, 0.0), torch.where(there, high, 0.0)


def _unzip(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


class Typed:
    """Predictions of all fields side by side: one number for a number, a score for each code of a category.

    Attributes:
        width: V.
    """

    def __init__(self, fields: Fields) -> None:
        sizes = [1] * fields.numbers + fields.sizes
        self.width, self.numbers = sum(sizes), fields.numbers
        start = np.cumsum([0, *sizes[:-1]])
        code = np.arange(max(sizes))
        place = start[:, None] + np.minimum(code, np.array(sizes)[:, None] - 1)
        self._place = torch.from_numpy(place)
        self._none = torch.from_numpy(code >= np.array(sizes)[:, None])
        self._even = torch.tensor(sizes).float().log().clamp_min(1e-6)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, N, V), (B, N, 2) fields and values → (B, N): squared error of a number; cross-entropy of a category as a
        share of that of an even guess, so that columns weigh alike. A missing value counts nothing.
        """
        field, value = target[..., 0].long(), target[..., 1]
        missing = value.isnan()
        value = value.masked_fill(missing, 0.0)
        device = prediction.device
        own = prediction.gather(-1, on_device(self._place, device)[field])
        squared = (own[..., 0] - value).square()
        scores = own.masked_fill(on_device(self._none, device)[field], -torch.inf)
        code = value.long().clamp(0, own.shape[-1] - 1)[..., None]
        entropy = scores.logsumexp(-1) - own.gather(-1, code).squeeze(-1)
        loss = torch.where(field < self.numbers, squared, entropy / on_device(self._even, device)[field])
        return loss.masked_fill(missing, 0.0)

    def guesses(self, prediction: Tensor) -> Tensor:
        """(B, F, V) for each field → (B, F): the number that is predicted, the likeliest code; NaN where it is NaN."""
        place, none = (on_device(of, prediction.device) for of in (self._place, self._none))
        own = prediction.gather(-1, place.expand(len(prediction), -1, -1))
        code = own.masked_fill(none, -torch.inf).argmax(dim=-1).to(own.dtype)
        number = torch.arange(own.shape[1], device=own.device) < self.numbers
        return torch.where(number, own[..., 0], code.masked_fill(own[..., 0].isnan(), torch.nan))


class TableStem(nn.Module):
    """Fields as vectors: a number times a learnt vector, the vector of a category's code, one for a missing value; each
    with a bias that says which field it is (Gorishniy et al. 2021, FT-Transformer, §3.3).
    """

    def __init__(self, fields: Fields, dim: int) -> None:
        super().__init__()
        self.numbers = fields.numbers
        self.first: Tensor
        first = np.cumsum([0, *fields.sizes[:-1]]) if fields.sizes else np.zeros(0, dtype=np.int64)
        self.register_buffer("first", torch.tensor(first, dtype=torch.int64), persistent=False)
        bound = dim**-0.5
        self.scales = nn.Parameter(torch.empty(self.numbers, dim).uniform_(-bound, bound))
        self.codes = nn.Parameter(torch.empty(sum(fields.sizes), dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(fields), dim).uniform_(-bound, bound))
        self.missing = nn.Parameter(torch.zeros(len(fields), dim))

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        """Tokens (B, F, D), all of them valid."""
        x, code, absent = self._parts(batch.data, None)
        numbers = x[..., None] * self.scales
        vectors = self.codes[code] * (1 - absent[:, self.numbers :, None])
        return torch.cat([numbers, vectors], dim=1) + self.bias + absent[..., None] * self.missing, None

    def total(self, data: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, D): the sum of the tokens without making them; fields `hidden` (B, F) count as missing."""
        x, code, absent = self._parts(data, hidden)
        total = x @ self.scales.to(x.dtype) + self.bias.sum(dim=0) + absent @ self.missing
        if code.shape[1] == 0:
            return total
        there = 1 - absent[:, self.numbers :]
        return total + nn_functional.embedding_bag(code, self.codes, mode="sum", per_sample_weights=there)

    def _parts(self, data: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, numbers) values, (B, categories) places among the codes, (B, F) 1 where there is no value."""
        absent = data.isnan() if hidden is None else data.isnan() | hidden
        known = data.masked_fill(absent, 0.0)
        code = known[:, self.numbers :].long() + self.first
        return known[:, : self.numbers], code, absent.to(self.scales.dtype)
