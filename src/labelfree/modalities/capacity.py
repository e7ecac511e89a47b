"""How large a transformer data and time allow."""

from __future__ import annotations

from labelfree.encoders.transformer import SIZES, Size
from labelfree.modalities.base import Budget, Choice

#: Tokens that each weight ought to see (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", §3.4),
#: and how often a token is still worth seeing (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
SEEN, PASSES = 20, 16
#: Share of the rate of a large matrix product that trainings of small transformers reach; an estimate.
REACHED = 0.3
#: Seconds that are reckoned with where epochs or steps were fixed.
WITHOUT_LIMIT = 600.0


def transformer_for(tokens: float, budget: Budget, passes: float = PASSES) -> Choice:
    """The largest size, from nano on, whose weights each see enough tokens in the time, none of them too often.

    Args:
        tokens: of all samples, counted once.
        budget: time and machine.
        passes: how often a token is worth seeing.
    """
    for name in ("base", "small", "tiny"):
        weights = _weights(SIZES[name])
        seen = REACHED * budget.flops * (budget.seconds or WITHOUT_LIMIT) / (6 * weights)
        if min(seen, passes * tokens) >= SEEN * weights:
            words = f"{weights / 1e6:.0f} million weights: {seen / tokens:,.1f} passes in the time allowed"
            return Choice("encoder", f"transformer:{name}", words)
    return Choice("encoder", "transformer:nano", "small enough to see the data many times")


def _weights(size: Size) -> float:
    """Weights of the blocks: attention has 4·dim², the perceptron after it 8·dim²."""
    return 12 * size.depth * size.dim**2
