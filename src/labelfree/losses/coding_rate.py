"""Total coding rate (Tong et al. 2023, EMP-SSL, §3.1, after Yu et al. 2020, MCR², §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from labelfree.distributed import gather
from labelfree.losses.precision import full_precision


@full_precision
def coding_rate(z: Tensor, distortion: float = 0.2) -> Tensor:
    """Bits (to base e) that the samples' codes take at a distortion: ½ log det(I + D / (N ε²) ZᵀZ), over the global
    batch; the larger the more evenly they fill their space.

    Args:
        z: (B, D) unit vectors.
        distortion: ε².
    """
    z = gather(z)
    count, width = z.shape
    # ZZᵀ and ZᵀZ have the same determinant here, so the smaller one will do.
    product = z @ z.T if count < width else z.T @ z
    matrix = torch.eye(len(product), device=z.device, dtype=z.dtype) + width / (count * distortion) * product
    return torch.linalg.cholesky(matrix).diagonal().log().sum()
