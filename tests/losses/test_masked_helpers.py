"""Helpers of masked modelling and regression: rectangles of hidden tokens, and vectors pulled together."""

from __future__ import annotations

import pytest
import torch

from labelfree.losses.masked import fill_in, hidden_positions, take
from labelfree.losses.regression import cosine_regression

MASK = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()


def test_hidden_positions_lists_hidden_tokens_in_order_and_marks_the_filling() -> None:
    positions, hidden = hidden_positions(MASK, 3)
    assert positions[0].tolist() == [1, 3, 4]
    assert positions[1, 0].item() == 0
    assert hidden.sum(dim=1).tolist() == [3, 1, 0]


def test_take_picks_rows_of_any_trailing_shape() -> None:
    tokens = torch.arange(30).view(3, 5, 2)
    positions = torch.tensor([[4, 0], [1, 1], [2, 3]])
    assert take(tokens, positions)[1].tolist() == [[12, 13], [12, 13]]
    assert take(tokens[..., 0], positions)[0].tolist() == [8, 0]


def test_fill_in_puts_visible_tokens_back_where_they_were() -> None:
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    tokens = torch.arange(1.0, 9).view(2, 4, 1)
    visible = tokens[~mask].view(2, 2, 1)
    filled = fill_in(visible, mask, torch.tensor([-1.0]))
    assert filled[..., 0].tolist() == [[1, -1, 3, -1], [-1, -1, 7, 8]]


def test_cosine_regression_is_the_squared_distance_of_unit_vectors() -> None:
    torch.manual_seed(0)
    p, z = torch.randn(2, 6, 4)
    distance = (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(dim=1).mean()
    torch.testing.assert_close(cosine_regression(p, z), distance)
    assert cosine_regression(p, -3 * p).item() == pytest.approx(4)
