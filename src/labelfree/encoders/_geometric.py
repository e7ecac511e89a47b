"""PyTorch Geometric, imported when it is first needed."""

from __future__ import annotations

import warnings
from typing import Any

from labelfree.errors import LabelfreeError


def geometric() -> Any:
    """The package `torch_geometric.nn`. Raises LabelfreeError where it is not installed."""
    try:
        with warnings.catch_warnings():
            # Its modules are still compiled with torch.jit, of whose end torch warns.
            warnings.simplefilter("ignore")
            import torch_geometric.nn
    except ImportError:
        raise LabelfreeError(
            "Graph networks need the package 'torch-geometric', which is not installed.",
            "Install it: pip install torch-geometric.",
        ) from None
    return torch_geometric.nn
