"""The dilated encoder: the convolution it says it is, blind to padding, and causal when asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.dilated import Dilated, DilatedConv
from labelfree.errors import LabelfreeError
from labelfree.modalities.series import Series
from labelfree.needs import Need


def small(causal: bool = False, channels: int = 2, patch: int = 1) -> Dilated:
    torch.manual_seed(0)
    return Dilated(channels, patch, hidden=8, depth=4, dim=12, causal=causal).eval()


def batch_of(data: torch.Tensor, lengths: list[int] | None = None) -> Batch:
    known = None if lengths is None else torch.tensor(lengths)
    return Batch(data, torch.arange(len(data)), lengths=known)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dilation", "steps"), [(1, 9), (4, 9), (5, 9), (9, 9), (16, 9), (2, 1)])
def test_a_convolution_is_torchs_own_with_its_gradients(dilation: int, steps: int, causal: bool) -> None:
    torch.manual_seed(0)
    ours = DilatedConv(3, 5, dilation, causal).double()
    x = torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = ours.weight.detach().permute(1, 2, 0).clone().requires_grad_()
    bias = ours.bias.detach().clone().requires_grad_()
    padded = F.pad(y.permute(1, 2, 0), (2 * dilation, 0) if causal else (dilation, dilation))
    expected = F.conv1d(padded, weight, bias, dilation=dilation).permute(2, 0, 1)
    found = ours(x, torch.float64)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, weight.grad.permute(2, 0, 1))
    torch.testing.assert_close(ours.bias.grad, bias.grad)


def test_convolutions_begin_as_torchs_own_do() -> None:
    torch.manual_seed(0)
    ours, torchs = DilatedConv(64, 64, 1, False), nn.Conv1d(64, 64, 3)
    assert ours.weight.std().item() == pytest.approx(torchs.weight.std().item(), rel=0.05)
    assert ours.weight.abs().max().item() == pytest.approx(torchs.weight.abs().max().item(), rel=0.01)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("patch", [1, 3])
def test_padding_changes_no_feature(causal: bool, patch: int) -> None:
    encoder, data = small(causal, patch=patch), torch.randn(3, 20, 2)
    lengths = [20, 13, 6]
    for row, length in enumerate(lengths):
        data[row, length:] = float("nan")
    padded = encoder(batch_of(data, lengths))
    for row, length in enumerate(lengths):
        alone = encoder(batch_of(data[row : row + 1, :length]))
        torch.testing.assert_close(padded.pooled[row : row + 1], alone.pooled)
        tokens = alone.tokens.shape[1]
        torch.testing.assert_close(padded.tokens[row : row + 1, :tokens], alone.tokens)
        assert padded.valid[row].sum() == tokens


def test_a_causal_encoder_sees_no_later_step_and_the_other_does() -> None:
    data = torch.randn(1, 16, 2)
    changed = data.clone()
    changed[:, 10:] += 1
    for causal in (True, False):
        encoder = small(causal)
        before, after = encoder(batch_of(data)).tokens, encoder(batch_of(changed)).tokens
        assert torch.equal(before[:, :10], after[:, :10]) == causal
        assert not torch.allclose(before[:, 10:], after[:, 10:])
        assert (Need.CAUSAL in encoder.can) == causal


def test_missing_steps_are_as_if_hidden_and_never_spread() -> None:
    encoder, data = small(), torch.randn(2, 16, 2)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 3:6] = True
    gone = data.clone()
    gone[:, 3:6] = float("nan")
    torch.testing.assert_close(encoder(batch_of(gone)).tokens, encoder(batch_of(data), hidden).tokens)
    partly = data.clone()
    partly[:, 3:6, 0] = float("nan")
    zeroed = data.clone()
    zeroed[:, 3:6, 0] = 0
    torch.testing.assert_close(encoder(batch_of(partly)).tokens, encoder(batch_of(zeroed)).tokens)


def test_dropout_belongs_to_the_sample_and_to_training() -> None:
    encoder, data = small(), torch.randn(4, 16, 2)
    draw = Draw.start(0, 0, 0, torch.arange(4))
    plain = encoder(batch_of(data).with_(draw=draw)).tokens
    torch.testing.assert_close(plain, encoder(batch_of(data)).tokens)
    encoder.train()
    dropped = encoder(batch_of(data).with_(draw=draw)).tokens
    assert 0.02 < (dropped == 0).float().mean() < 0.2
    alone = encoder(batch_of(data[2:3]).with_(draw=draw[2:3])).tokens
    torch.testing.assert_close(dropped[2:3], alone)


def test_half_precision_stays_close_to_full() -> None:
    torch.manual_seed(0)
    encoder, batch = Dilated(1, 1, 64, 10, 320).eval(), batch_of(torch.randn(8, 200, 1))
    full = encoder(batch).pooled
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(batch).pooled
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.03 * full.abs().max()


def test_variants_are_built_by_name_and_unknown_ones_refused() -> None:
    modality = Series()
    modality.load_state({"channels": ["a", "b"], "mean": [0, 0], "std": [1, 1], "length": 50, "window": 0})
    assert Dilated.build("", modality).dim == 320
    assert {name: Dilated.build(name, modality).dim for name in Dilated.variants()} == {
        "tiny": 128,
        "base": 320,
        "large": 640,
    }
    with pytest.raises(LabelfreeError, match=r"no encoder 'dilated:tini'.*Did you mean 'tiny'"):
        Dilated.build("tini", modality)
