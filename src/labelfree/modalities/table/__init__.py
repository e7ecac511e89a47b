"""Rows with typed columns."""

from labelfree.modalities.table.modality import Table, TableDataset, TableSettings

__all__ = ["Table", "TableDataset", "TableSettings"]
