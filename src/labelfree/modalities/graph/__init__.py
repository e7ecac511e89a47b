"""Graphs: one large one by its nodes or edges, or many small ones."""

from labelfree.modalities.graph.modality import Graph, GraphDataset, GraphSettings

__all__ = ["Graph", "GraphDataset", "GraphSettings"]
