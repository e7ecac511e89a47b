"""Two or more kinds of data tied by row."""

from labelfree.modalities.pair.modality import Pair, PairSettings

__all__ = ["Pair", "PairSettings"]
