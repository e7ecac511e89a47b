"""Small crops are small parts of a sample, and encoders take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import SOURCES, VIEWS

from labelfree import registry
from labelfree.data.batch import Batch
from labelfree.data.draw import Draw
from labelfree.data.loader import batches
from labelfree.modalities.image import Image
from labelfree.objectives._views import local_crops


def opened(kind: str, folder: Path) -> tuple[Any, Any]:
    modality = registry.modalities()[kind]
    own = {key: value for key, value in VIEWS.get(kind, {}).items() if "." not in key and key != "width"}
    data = modality(modality.settings_class.read(own, kind))
    dataset = data.open(SOURCES[kind](folder))
    data.fit(dataset)
    needs = frozenset()
    return data, next(batches(data.training_set(dataset, needs), data, 4))


def areas(view: Batch) -> torch.Tensor:
    """(B,) share of each picture that a view of it shows."""
    x0, y0, x1, y1 = view.extra["crop"].T
    return (x1 - x0).abs() * (y1 - y0)


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "pair"])
def test_an_encoder_takes_the_crops_of_every_kind_of_data(kind: str, tmp_path: Path) -> None:
    data, raw = opened(kind, tmp_path)
    torch.manual_seed(0)
    encoder = registry.encoders()["transformer"].build("nano", data).eval()
    crops = local_crops(data, raw, Draw.start(0, 0, 0, raw.index), 3)
    assert crops is not None
    assert len(crops) == 12
    with torch.no_grad():
        pooled = encoder(crops).pooled
        alone = encoder(data.view(raw, Draw.start(0, 0, 0, raw.index).view(3), "local")).pooled
    assert pooled.isfinite().all()
    assert not torch.allclose(pooled[:4], pooled[4:8], rtol=1e-3, atol=1e-3)  # two crops, two views
    torch.testing.assert_close(pooled[4:8], alone, rtol=1e-4, atol=1e-4)


def test_without_crops_there_is_no_batch(tmp_path: Path) -> None:
    data, raw = opened("image", tmp_path)
    assert local_crops(data, raw, Draw.start(0, 0, 0, raw.index), 0) is None


def test_small_crops_of_pictures_are_half_as_large_and_show_less_than_half() -> None:
    data = Image(Image.settings_class.read({"size": 32, "patch": 4}, "image"))
    pictures = np.random.default_rng(0).integers(0, 255, (64, 40, 40, 3), dtype=np.uint8)
    dataset = data.open(pictures)
    data.fit(dataset)
    raw = next(batches(dataset, data, 64))
    crop = data.view(raw, Draw.start(0, 0, 0, raw.index), "local")
    assert crop.data.shape == (64, 3, 16, 16)
    assert float(areas(crop).max()) <= 0.41


@pytest.mark.parametrize(("size", "patch", "small"), [(32, 4, 16), (24, 8, 8), (8, 8, 4), (20, 4, 8)])
def test_patches_divide_small_crops_where_they_can(size: int, patch: int, small: int) -> None:
    assert Image(Image.settings_class.read({"size": size, "patch": patch}, "image")).local_size == small


@pytest.mark.parametrize("objective", ["simclr", "ibot"])
def test_contrast_views_may_be_smaller_than_pictures(objective: str) -> None:
    data = Image(Image.settings_class.read({"size": 32, "view_size": 18, "patch": 4}, "image"))
    dataset = data.open(np.random.default_rng(0).integers(0, 255, (8, 40, 40, 3), dtype=np.uint8))
    data.fit(dataset)
    raw = next(batches(dataset, data, 8))
    draw = Draw.start(0, 0, 0, raw.index)
    assert data.prepare(raw).data.shape == (8, 3, 32, 32)
    assert {p: data.view(raw, draw, p).data.shape[-1] for p in ("contrast", "light", "none", "local")} == {
        "contrast": 16,
        "light": 32,
        "none": 32,
        "local": 16,
    }
    learner = registry.objectives()[objective](registry.build_encoder("transformer:pico", data), data)
    learner.expect(8)
    assert learner(raw, draw).loss.isfinite()


@pytest.mark.parametrize(("method", "share"), [("dino-vit", 0.4), ("ibot-vit", 0.25), ("dinov2", 0.32)])
def test_large_views_of_vision_transformers_begin_where_small_crops_end(method: str, share: float) -> None:
    _, recipe = registry.method(method)
    assert recipe is not None
    data = Image(Image.settings_class.read({"size": 32, "patch": 4, **recipe.options}, "image"))
    dataset = data.open(np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3), dtype=np.uint8))
    data.fit(dataset)
    raw = next(batches(dataset, data, 64))
    large, small = (areas(data.view(raw, Draw.start(0, 0, 0, raw.index), p)) for p in ("contrast", "local"))
    assert float(small.max()) < share + 1e-4
    assert float(large.min()) > share - 1e-4
    assert float(small.max()) > 0.8 * share
    assert float(large.min()) < 1.2 * share
