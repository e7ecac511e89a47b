"""A transformer is as large as time and data allow."""

import pytest

from labelfree.modalities.base import Budget
from labelfree.modalities.capacity import transformer_for

TWO_CORES, GPU = 4e11, 2e14
MINUTES, HOURS = 600.0, 36_000.0


@pytest.mark.parametrize(
    ("tokens", "budget", "size"),
    [
        (1e8, Budget(MINUTES, TWO_CORES, False), "nano"),
        (1e8, Budget(None, TWO_CORES, False), "nano"),
        (1e8, Budget(HOURS, TWO_CORES, False), "tiny"),
        (1e6, Budget(HOURS, TWO_CORES, False), "nano"),  # too few tokens for more weights
        (1e8, Budget(MINUTES, GPU, True), "tiny"),
        (1e8, Budget(HOURS, GPU, True), "small"),
        (1e7, Budget(HOURS, GPU, True), "tiny"),
        (1e10, Budget(HOURS, GPU, True), "base"),
    ],
)
def test_size_by_time_and_tokens(tokens: float, budget: Budget, size: str) -> None:
    choice = transformer_for(tokens, budget)
    assert choice.value == f"transformer:{size}"
    assert choice.reason


def test_what_is_worth_seeing_more_often_is_worth_more_weights() -> None:
    budget = Budget(HOURS, GPU, True)
    assert transformer_for(3e6, budget).value == "transformer:nano"
    assert transformer_for(3e6, budget, passes=400).value == "transformer:small"
    assert transformer_for(3e6, Budget(MINUTES, TWO_CORES, False), passes=400).value == "transformer:nano"
