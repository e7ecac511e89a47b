"""Ids are drawn as often as they are probable."""

from __future__ import annotations

import torch

from labelfree.losses.replaced import draw_ids


def test_each_id_is_drawn_as_often_as_it_is_probable() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5) * 2
    uniform = torch.rand(2, 50_000)
    drawn = draw_ids(logits[:, None].expand(-1, 50_000, -1), uniform)
    for row in range(2):
        share = torch.tensor([(drawn[row] == i).float().mean() for i in range(5)])
        torch.testing.assert_close(share, logits[row].softmax(dim=0), atol=0.01, rtol=0)


def test_impossible_ids_are_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    uniform = torch.tensor([0.0, 0.25, 0.4999, 0.5, 0.75, 1 - 2.0**-24])
    assert draw_ids(logits.expand(6, -1), uniform).tolist() == [1, 1, 1, 3, 3, 3]
