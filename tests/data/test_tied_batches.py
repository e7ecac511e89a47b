"""Batches that tie several kinds of data together behave as one."""

import numpy as np
import torch

from labelfree.data.batch import Batch, Sample
from labelfree.data.draw import Draw


def tied(count: int, first: int = 0) -> Batch:
    index = torch.arange(first, first + count)
    text = Batch(index[:, None] + torch.arange(3), index, lengths=index % 3 + 1)
    return Batch(index * 10, index, draw=Draw.start(0, 0, 0, index), extra={"edges": index[:, None]}, parts={"t": text})


def test_rows_are_taken_from_the_parts_too() -> None:
    rows = tied(4)[torch.tensor([2, 0])]
    assert rows.parts["t"].data.tolist() == [[2, 3, 4], [0, 1, 2]]
    assert rows.parts["t"].lengths is not None
    assert rows.extra["edges"].tolist() == [[2], [0]]


def test_batches_with_parts_are_joined() -> None:
    joined = Batch.cat([tied(2), tied(3, first=2)])
    assert torch.equal(joined.parts["t"].data, tied(5).parts["t"].data)
    assert torch.equal(joined.data, tied(5).data)
    assert joined.to("cpu").parts["t"].index.tolist() == [0, 1, 2, 3, 4]


def test_a_sample_weighs_all_that_it_holds() -> None:
    words = Sample(np.zeros(5, np.int32), 0)
    both = Sample(np.zeros((2, 2), np.float32), 0, extra={"edges": np.zeros((3, 2), np.int64)}, parts={"t": words})
    assert both.nbytes == 16 + 48 + 20
