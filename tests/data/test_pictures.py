"""Pictures as files hold them: their size is told as it is upright, their range at a bounded cost."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from labelfree.data.pictures import decode, header, some_values, with_channels
from labelfree.modalities.image import Image

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_size_of_a_turned_tiff_file_is_that_of_its_picture(tmp_path: Path, turn: int, bands: int) -> None:
    path, planes = tmp_path / "a.tif", [Pillow.fromarray(RANDOM.integers(0, 255, (8, 12), np.uint8))] * bands
    planes[0].save(path, tiffinfo={274: turn}, compression="tiff_lzw", save_all=True, append_images=planes[1:])
    found = header(path)
    assert (found.height, found.width, found.channels) == decode(path).shape
    assert (found.height, found.width) == ((8, 12) if turn < 5 else (12, 8))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_grey_becomes_colour_and_is_as_solid_as_it_was(kind: type) -> None:
    top = np.iinfo(kind).max if kind is not np.float32 else 1
    grey, faint = np.full((2, 3, 1), 0.5 * top).astype(kind), np.full((2, 3, 1), 0.25 * top).astype(kind)
    both = np.concatenate([grey, faint], axis=2)
    for picture, expected in (
        (with_channels(grey, 2), [grey, np.full_like(grey, top)]),
        (with_channels(grey, 4), [grey, grey, grey, np.full_like(grey, top)]),
        (with_channels(both, 4), [grey, grey, grey, faint]),
    ):
        np.testing.assert_array_equal(picture, np.concatenate(expected, axis=2))


def test_some_values_are_from_all_over_a_large_picture() -> None:
    small, large = RANDOM.random((8, 12, 3)), np.arange(4_000_000).reshape(2000, 2000)
    assert np.array_equal(some_values(small), small.ravel())
    found = some_values(large)
    assert len(found) < 1_500_000
    assert found[-1] > 3_999_900
    assert len(np.unique(found % 2000)) == 2000


def test_the_range_of_large_pictures_takes_little_memory(tmp_path: Path) -> None:
    for number in range(12):
        values = RANDOM.integers(0, 4000, (1500, 1500)).astype(np.uint16)
        Pillow.fromarray(values).save(tmp_path / f"{number}.tif")
    tracemalloc.start()
    form = Image().open(tmp_path).form
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (form.low, form.high) == (0, 4095)
    assert most < 12 * 1500**2 * 2 * 1.5
