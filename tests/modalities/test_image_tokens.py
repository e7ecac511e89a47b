"""Pictures as tokens: blocks that are hidden together, colours to be predicted, neighbours to be placed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import pictures

from labelfree.data.batch import Batch, Sample
from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import hidden_count
from labelfree.modalities.image import Image
from labelfree.modalities.image.tokens import joined, moments, squares
from labelfree.modalities.image.views import central_boxes, neighbouring_boxes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("source"))


def opened(source: Path, **settings: object) -> tuple[Image, Batch, Draw]:
    modality = Image(Image.settings_class.read({"size": 16, "patch": 2, **settings}, "image"))
    dataset = modality.open(source)
    modality.fit(dataset)
    batch = modality.collate([item for item in dataset.read(range(32)) if isinstance(item, Sample)])
    return modality, batch, Draw.start(0, 0, 0, batch.index)


def test_squares_put_together_are_the_picture() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(joined(squares(x, 4), 4, 8), x)
    assert torch.equal(squares(x, 4)[0, 4].view(4, 4, 3), x[0, :, 4:8, 4:8].permute(1, 2, 0))


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_block_is_one_square_that_lies_somewhere(ratio: float, source: Path) -> None:
    modality, batch, draw = opened(source, mask_shape="block")
    mask = modality.sample_mask(modality.view(batch, draw, "none"), draw, ratio)
    assert (mask.sum(dim=1) == hidden_count(64, ratio)).all()
    for rows in mask.view(-1, 8, 8):
        places = rows.nonzero()
        extent = (places.amax(dim=0) - places.amin(dim=0) + 1).tolist()
        assert max(extent) <= ratio**0.5 * 8 + 2, "the hidden tokens lie together"
    assert len(torch.unique(mask, dim=0)) > 16


def test_four_blocks_hide_as_much_as_asked_for_and_lie_about(source: Path) -> None:
    modality, batch, draw = opened(source, mask_shape="blocks")
    mask = modality.sample_mask(modality.view(batch, draw, "none"), draw, 0.5)
    assert (mask.sum(dim=1) == hidden_count(64, 0.5)).all()
    rows = mask.view(-1, 8, 8)
    beside = (rows[:, :, 1:] & rows[:, :, :-1]).sum(dim=(1, 2)) / rows.sum(dim=(1, 2))
    assert beside.float().mean() > 0.65, "hidden tokens have hidden neighbours (one in two by chance: 0.44)"


def test_squares_of_four_tokens_are_hidden_together(source: Path) -> None:
    modality, batch, draw = opened(source, mask_shape="squares")
    mask = modality.sample_mask(modality.view(batch, draw, "none"), draw, 0.625)
    assert (mask.sum(dim=1) == hidden_count(64, 0.625)).all()
    assert set(squares(mask.view(-1, 1, 8, 8).float(), 2).sum(dim=2).unique().tolist()) == {0.0, 4.0}
    assert len(torch.unique(mask, dim=0)) > 16


def test_moments_of_each_channel_are_its_own() -> None:
    tokens = torch.randn(2, 3, 4 * 4 * 3) * 5
    mean, deviation = moments(tokens, channels=3)
    pixels = tokens.view(2, 3, 16, 3)
    torch.testing.assert_close(mean.view(2, 3, 16, 3)[:, :, 5], pixels.mean(dim=2))
    torch.testing.assert_close(deviation.view(2, 3, 16, 3)[:, :, 7], pixels.std(dim=2, correction=0))
    torch.testing.assert_close(moments(tokens)[0], tokens.mean(dim=2, keepdim=True))


def test_colours_are_asked_of_a_picture_shown_in_grey(source: Path) -> None:
    modality, batch, draw = opened(source, target="colour")
    view = modality.view(batch, draw, "none")
    mask = modality.sample_mask(view, draw, 0.5)
    shown, left = modality.hide(view, mask, draw)
    assert not left.any()
    seen, true = (torch.stack([torch.tensor(s.data) for s in modality.rebuild(v)]).float() for v in (shown, view))
    assert (seen.amax(dim=1) - seen.amin(dim=1)).max() <= 1, "no colour is left"
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert ((true * luma).sum(dim=1) - seen[:, 0]).abs().max() <= 1.5, "the brightness is"
    again = modality.rebuild(view.with_(data=shown.data), modality.targets(view))
    assert (torch.tensor(again[0].data).float() - true[0]).abs().max() <= 2


def test_colours_need_three_channels(source: Path) -> None:
    modality, batch, draw = opened(source, target="colour", channels=1)
    with pytest.raises(LabelfreeError, match=r"1 channel\(s\) have no colours.*channels=3"):
        modality.targets(modality.view(batch, draw, "none"))


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_rebuilt_pictures_take_predictions_where_they_are_asked_for(target: str, source: Path) -> None:
    modality, batch, draw = opened(source, target=target)
    view = modality.view(batch, draw, "none")
    mask = modality.sample_mask(view, draw, 0.25)
    true = torch.stack([torch.tensor(s.data) for s in modality.rebuild(view)])
    exact = torch.stack([torch.tensor(s.data) for s in modality.rebuild(view, modality.targets(view), mask)])
    assert (exact.int() - true.int()).abs().max() <= 1
    gaps = torch.stack(
        [torch.tensor(s.data) for s in modality.rebuild(view, torch.full_like(modality.targets(view), torch.nan), mask)]
    )
    pixels = mask.view(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(true)
    assert (gaps == true)[~pixels].all()
    assert len(torch.unique(gaps[:, 0][pixels[:, 0]])) == 1, "what is not known is of one grey"


def test_the_second_patch_lies_where_it_is_said_to(source: Path) -> None:
    modality, batch, draw = opened(source)
    whole = central_boxes(batch.extra["aspect"])
    which = torch.arange(32) % 8
    first, second = neighbouring_boxes(whole, which, draw)
    away = (second + second.roll(2, 1) - first - first.roll(2, 1))[:, :2] / 2
    expected = [(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)]
    assert away.div(5 / 14).round().int().tolist() == [list(expected[w]) for w in which.tolist()]
    for boxes in (first, second):
        assert boxes.min() >= 0
        assert boxes.max() <= 1
    apart = torch.maximum(second[:, :2] - first[:, 2:], first[:, :2] - second[:, 2:]).amax(dim=1)
    assert apart.min() >= -1e-6, "they share no pixel"
    view = modality.transformations()["position"].apply(batch, which, draw)
    assert view.data.shape == (32, 3, 16, 16)
    assert (view.data[:, :, :4] == 0).all()
