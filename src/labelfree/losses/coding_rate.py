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
        z: (B, D) unit vectors; or (V, B, D), views of the samples, each by itself.
        distortion: ε².

    Returns:
        Scalar, or (V,); NaN where a code is.
    """
    z = gather(z.transpose(0, -2)).transpose(0, -2)
    count, width = z.shape[-2:]
    # ZZᵀ and ZᵀZ have the same determinant here, so the smaller one will do.
    product = z @ z.mT if count < width else z.mT @ z
    matrix = torch.eye(product.shape[-1], device=z.device, dtype=z.dtype) + width / (count * distortion) * product
    # whether it went well is not asked: on a GPU the host would wait for the answer
    return torch.linalg.cholesky_ex(matrix).L.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
