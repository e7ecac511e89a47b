"""The shared transformer: padding, causality, hiding, windows, dropout."""

import pytest
import torch
from timm.models import vision_transformer
from torch import nn

from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.encoders.base import Encoder
from labelfree.encoders.block import Block
from labelfree.encoders.trunk import EMBEDDED, Trunk
from labelfree.errors import LabelfreeError
from labelfree.losses.masked import visible_positions
from labelfree.modalities.text.tokens import TextStem
from labelfree.needs import Need
from labelfree.registry import encoders


class Stem(nn.Module):
    """Each number of a sample is a token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(1, dim)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = self.proj(batch.data[..., None])
        if batch.lengths is None:
            return tokens, None
        return tokens, torch.arange(tokens.shape[1]) < batch.lengths[:, None]


def make(**options) -> Trunk:
    torch.manual_seed(0)
    return Trunk(Stem(32), dim=32, depth=2, heads=4, **options)


def batch(count: int = 4, length: int = 10, lengths: list[int] | None = None) -> Batch:
    data = torch.randn(count, length, generator=torch.Generator().manual_seed(1))
    index = torch.arange(count)
    return Batch(data, index, None if lengths is None else torch.tensor(lengths), draw=Draw.start(0, 0, 0, index))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 4}, {"causal": True, "window": 4}])
def test_padding_and_company_change_nothing(options):
    trunk = make(**options).eval()
    lengths = [10, 7, 3, 1]
    padded = batch(lengths=lengths)
    together = trunk(padded)
    rubbish = trunk(padded.with_(data=torch.where(torch.arange(10) < padded.lengths[:, None], padded.data, 99.0)))
    torch.testing.assert_close(together.pooled, rubbish.pooled)
    for row, length in enumerate(lengths):
        alone = trunk(batch()[row : row + 1].with_(data=padded.data[row : row + 1, :length]))
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [10, 9, 8, 7]])
def test_a_causal_trunk_does_not_see_the_future(lengths):
    trunk = make(causal=True).eval()
    seen = batch(lengths=lengths)
    changed = seen.with_(data=torch.cat([seen.data[:, :6], -seen.data[:, 6:]], dim=1))
    first, second = trunk(seen).tokens, trunk(changed).tokens
    torch.testing.assert_close(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6], second[:, 6])
    assert Need.CAUSAL in trunk.can
    assert Need.CAUSAL not in make().can


@pytest.mark.parametrize("hide", ["replace", "drop"])
def test_hidden_tokens_are_not_seen(hide):
    trunk = make().eval()
    seen = batch()
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:, 2] = mask[0, 5] = mask[1, 6] = mask[2, 0] = mask[3, 9] = True
    hidden = {"mask": mask} if hide == "replace" else {"kept": visible_positions(mask, 2)}
    first = trunk(seen, **hidden)
    second = trunk(seen.with_(data=torch.where(mask, 7.0, seen.data)), **hidden)
    torch.testing.assert_close(first.tokens, second.tokens)
    assert first.tokens.shape == ((4, 8, 32) if hide == "drop" else (4, 10, 32))
    assert not torch.allclose(first.pooled, trunk(seen).pooled)


def test_dropping_keeps_the_order_and_the_positions():
    trunk = make().eval()
    everything = torch.arange(10).expand(4, -1)
    torch.testing.assert_close(trunk(batch(), kept=everything).tokens, trunk(batch()).tokens)


def test_dropping_from_unequal_lengths_is_refused():
    with pytest.raises(LabelfreeError, match="unequal length"):
        make()(batch(lengths=[10, 9, 8, 7]), kept=torch.arange(5).expand(4, -1))


def test_positions_matter_and_windows_are_read_alone():
    trunk = make(window=5).eval()
    seen = batch()
    assert not torch.allclose(trunk(seen).pooled, trunk(seen.with_(data=seen.data.flip(1))).pooled)
    halves = [trunk(seen.with_(data=part)).tokens for part in seen.data.split(5, dim=1)]
    torch.testing.assert_close(trunk(seen).tokens, torch.cat(halves, dim=1))


def test_dropout_belongs_to_the_sample_and_the_view():
    trunk = make(dropout=0.2).train()
    seen = batch()
    first = trunk(seen).pooled
    torch.testing.assert_close(first, trunk(seen).pooled, rtol=0, atol=0)
    assert not torch.allclose(first, trunk(seen.with_(draw=seen.draw.view(1))).pooled)
    torch.testing.assert_close(first[2:], trunk(seen[2:]).pooled, rtol=1e-4, atol=1e-5)
    padded = trunk(seen.with_(data=nn.functional.pad(seen.data, (0, 3)), lengths=torch.full((4,), 10)))
    torch.testing.assert_close(first, padded.pooled, rtol=1e-4, atol=1e-5)
    trunk.eval()
    torch.testing.assert_close(trunk(seen).pooled, trunk(seen.with_(draw=None)).pooled)


def test_gradients_reach_every_parameter():
    trunk = make(dropout=0.1).train()
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:, 3] = True
    trunk(batch(), mask).tokens.square().sum().backward()
    assert [name for name, p in trunk.named_parameters() if p.grad is None] == []
    listed = [p for group in trunk.layers() for p in group]
    assert len(listed) == len(set(listed)) == len(list(trunk.parameters()))


def test_the_trunk_is_no_encoder_of_its_own_name():
    assert all(cls is not Trunk for cls in encoders().values())
    assert issubclass(Trunk, Encoder)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["all", "some", "past"])
def test_a_block_is_timm_s(kind, how):
    torch.manual_seed(0)
    theirs, ours = vision_transformer.Block(32, 4, qkv_bias=True), Block(32, 4)
    ours.load_state_dict(theirs.state_dict())
    x, seen = torch.randn(3, 10, 32, requires_grad=True), torch.rand(3, 1, 1, 10) > 0.3 if how == "some" else None
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        a, b = theirs(x, seen, how == "past"), ours(x, seen, how == "past")
    error = 1e-5 if kind == torch.float32 else 0.03
    torch.testing.assert_close(b, a, atol=error, rtol=error)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), x) for y in (a, b)), strict=True):
        torch.testing.assert_close(other, one, atol=10 * error, rtol=10 * error)


def test_vectors_of_words_come_back_to_the_scale_of_a_new_network():
    torch.manual_seed(0)
    trunk = Trunk(TextStem(50, 32), dim=32, depth=2, heads=4).eval()
    words = Batch(torch.randint(0, 50, (4, 10)), torch.arange(4))
    with torch.no_grad():
        trunk.stem.embedding.weight *= torch.linspace(1, 20, 50)[:, None]
        before = trunk(words).tokens
        trunk.rescale()
        change = (trunk(words).tokens - before).norm(dim=2) / before.norm(dim=2)
    assert change.max() < 0.03  # the norm that follows takes the scale away, but for its epsilon
    torch.testing.assert_close(trunk.stem.embedding.weight.std(dim=1), torch.full((50,), EMBEDDED))
