"""Losses on the distribution of embeddings, against references from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labelfree.losses.coding_rate import coding_rate
from labelfree.losses.sigreg import sigreg


def test_sigreg_is_epps_and_pulleys_statistic_along_each_direction() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 7, 3, dtype=torch.float64) * 1.4 + 0.3
    directions = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=0)
    t = np.linspace(-5, 5, 17)
    found = []
    for view in z:
        for direction in directions.T:
            shadow = (view @ direction).numpy()
            phi = np.exp(1j * np.outer(t, shadow)).mean(axis=1)
            normal = np.exp(-(t**2) / 2)
            found.append(len(shadow) * np.trapezoid(np.abs(phi - normal) ** 2 * normal, t))
    assert float(sigreg(z, directions)) == pytest.approx(np.mean(found), rel=1e-9)


def test_sigreg_prefers_a_standard_normal_and_its_gradient_leads_there() -> None:
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(4, 64), dim=0)
    normal = torch.randn(1, 512, 4)
    at_normal = sigreg(normal, directions)
    for other in (normal * 0.2, normal + 2, normal.sign(), torch.zeros_like(normal)):
        assert sigreg(other, directions) > 3 * at_normal
    scale = torch.tensor(0.2, requires_grad=True)
    sigreg(scale * normal, directions).backward()
    assert scale.grad is not None
    assert scale.grad < 0


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["fewer samples than dimensions", "more"])
def test_coding_rate_equals_its_definition_in_value_and_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z = F.normalize(torch.randn(shape, dtype=torch.float64), dim=1).requires_grad_()
    count, width = shape
    matrix = torch.eye(width, dtype=torch.float64) + width / (count * 0.3) * z.T @ z
    fast, slow = coding_rate(z, 0.3), matrix.logdet() / 2
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, z)[0], torch.autograd.grad(slow, z)[0])


def test_codes_that_are_all_alike_have_the_least_rate() -> None:
    torch.manual_seed(0)
    spread = F.normalize(torch.randn(32, 16), dim=1)
    assert coding_rate(spread[:1].expand(32, 16)) < 0.5 * coding_rate(spread)


def test_coding_rate_of_views_is_that_of_each_and_nan_where_a_code_is() -> None:
    torch.manual_seed(0)
    z = F.normalize(torch.randn(3, 8, 6), dim=2)
    assert torch.allclose(coding_rate(z), torch.stack([coding_rate(view) for view in z]))
    z[1, 2, 3] = torch.nan
    assert coding_rate(z).isnan().tolist() == [False, True, False]
