"""Series of several channels, with lengths that differ and values that are missing."""

from labelfree.modalities.series.dataset import SeriesDataset
from labelfree.modalities.series.modality import Series, SeriesSettings

__all__ = ["Series", "SeriesDataset", "SeriesSettings"]
