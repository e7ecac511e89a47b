"""Which tokens are hidden: the share asked for of those that are there, and never padding."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelfree.data.draw import Draw
from labelfree.modalities.base import hidden_count, span_mask, token_mask


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.floats(0.05, 0.95), st.integers(0, 99))
def test_the_lowest_of_the_valid_are_hidden(lengths: list[int], ratio: float, seed: int) -> None:
    count = max([2, *lengths])
    valid = torch.arange(count) < torch.tensor(lengths)[:, None]
    scores = torch.rand(len(lengths), count, generator=torch.Generator().manual_seed(seed))
    mask = token_mask(scores, ratio, valid)
    assert not (mask & ~valid).any()
    assert (mask.sum(dim=1) <= hidden_count(count, ratio)).all()
    for hidden, there, score, length in zip(mask, valid, scores, lengths, strict=True):
        assert min(1, length - 1) <= hidden.sum() <= max(0, length - 1)
        if hidden.any():
            assert score[hidden].max() <= score[there & ~hidden].min()


def test_padding_stays_where_only_the_last_choices_are_left() -> None:
    draw = Draw.start(0, 0, 0, torch.arange(64))
    valid = (torch.arange(8) < 4).expand(64, -1)
    mask = span_mask(draw, 8, 2, 0.5, valid, last=valid)
    assert not (mask & ~valid).any()
    assert (mask.sum(dim=1) == 2).all()
