"""Pictures: any usual source is read right, views are what they say, and bad input is named."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Pillow
from PIL import PngImagePlugin
from torchvision.transforms.v2 import functional as tv

from labelfree.data import encoded
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.data.pictures import Form, decode, header, keep
from labelfree.data.sources import frame, read_table
from labelfree.errors import LabelfreeError
from labelfree.modalities.base import Budget
from labelfree.modalities.image import Image, ImageSettings
from labelfree.modalities.image import modality as modality_file
from labelfree.modalities.image.modality import find_form, jigsaw_orders, look_through
from labelfree.modalities.image.sources import Arrays
from labelfree.modalities.image.views import Policy, blurring, central_boxes, crop, random_boxes, recolour
from labelfree.training.plan import recognise

RANDOM = np.random.default_rng(0)


def picture(height: int = 12, width: int = 12, channels: int = 3, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, high, (height, width, channels)).astype(dtype)


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(path: Path, count: int = 6, size: int = 12) -> Path:
    for number in range(count):
        place = path / ("even" if number % 2 == 0 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(picture(size, size)))
    return path


def parquet_of(path: Path, pictures: list[np.ndarray], rows: int = 4) -> Path:
    encoded = [{"bytes": png(one), "path": None} for one in pictures]
    table = pa.table(
        {"image": encoded, "label": list(range(len(pictures))), "word": [f"w{i}" for i in range(len(pictures))]}
    )
    pq.write_table(table, path, row_group_size=rows)
    return path


def read_all(source: Any, **options: Any) -> list[np.ndarray]:
    dataset = Image(ImageSettings(**options)).open(source)
    items = dataset.read(range(len(dataset)))
    assert all(isinstance(item, Sample) for item in items), items
    return [item.data for item in items if isinstance(item, Sample)]


# ---- reading


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]))))
def test_lossless_pictures_are_kept_to_the_last_bit(values: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(png(values)), values)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jpg"])
def test_every_usual_format_is_read(tmp_path: Path, suffix: str) -> None:
    y, x = np.mgrid[:24, :24]
    smooth = np.stack([10 * y, 10 * x, 5 * (x + y)], axis=2).astype(np.uint8)
    options = {"lossless": True} if suffix == "webp" else {"quality": 98} if suffix == "jpg" else {}
    for number in range(2):
        Pillow.fromarray(smooth).save(tmp_path / f"{number}.{suffix}", **options)
    found = read_all(tmp_path)[0]
    assert np.abs(found.astype(int) - smooth.transpose(2, 0, 1)).max() <= (12 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str) -> None:
    values = picture(8, 8, 1, 65536, np.uint16)
    for number in range(2):
        Pillow.fromarray(values[..., 0]).save(tmp_path / f"{number}.{suffix}")
    found = read_all(tmp_path)[0]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[0], values[..., 0])


def test_twelve_bits_use_the_whole_range(tmp_path: Path) -> None:
    values = picture(8, 8, 1, 4096, np.uint16)
    values[0, 0] = 4095
    np.save(tmp_path / "scans.npy", np.stack([values] * 3))
    found = read_all(tmp_path / "scans.npy")[0]
    np.testing.assert_allclose(found[0] / 65535, values[..., 0] / 4095, atol=1e-5)


def test_frames_of_a_tiff_are_bands(tmp_path: Path) -> None:
    bands = [picture(8, 8, 1)[..., 0] for _ in range(7)]
    first, *rest = [Pillow.fromarray(band) for band in bands]
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
    np.testing.assert_array_equal(read_all(tmp_path)[0], np.stack(bands))


def test_transparency_is_laid_on_white_or_kept() -> None:
    values = np.zeros((4, 4, 4), np.uint8)
    values[:2, :, 3] = 255
    buffer = io.BytesIO()
    Pillow.fromarray(values).save(buffer, "PNG")
    assert decode(buffer.getvalue())[:2].max() == 0
    assert decode(buffer.getvalue())[2:].min() == 255
    np.testing.assert_array_equal(decode(buffer.getvalue(), alpha=True), values)


def test_palettes_and_bilevel_pictures_are_read() -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(picture(6, 6)).convert("P").save(buffer, "PNG")
    assert decode(buffer.getvalue()).shape == (6, 6, 3)
    buffer = io.BytesIO()
    Pillow.fromarray(picture(6, 6)).convert("1").save(buffer, "TIFF")
    assert set(np.unique(decode(buffer.getvalue()))) <= {0, 255}


def test_pictures_lie_upright(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    dataset = Image().open(tmp_path)
    assert dataset.describe().facts["sizes"] == "10×20"
    (sample,) = dataset.read([0])
    assert isinstance(sample, Sample)
    assert sample.data.shape == (3, 20, 10)


def test_unequal_sizes_are_brought_together_and_remember_their_shape(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(200, 100), (50, 100), (80, 80)]):
        Pillow.new("RGB", (width, height), "red").save(tmp_path / f"{number}.jpg")
    dataset = Image(ImageSettings(size=32)).open(tmp_path)
    samples = dataset.read([0, 1, 2])
    assert {sample.data.shape for sample in samples if isinstance(sample, Sample)} == {(3, 64, 64)}
    assert [sample.meta["aspect"] for sample in samples if isinstance(sample, Sample)] == [2.0, 0.5, 1.0]
    assert dataset.describe().facts["sizes"] == "50×100 … 200×100"


def test_grey_and_colour_in_one_source_become_colour(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(8, 8, 1)))
    (tmp_path / "b.png").write_bytes(png(picture(8, 8, 3)))
    assert [found.shape for found in read_all(tmp_path)] == [(3, 8, 8)] * 2
    assert [found.shape for found in read_all(tmp_path, channels=1)] == [(1, 8, 8)] * 2


@pytest.mark.parametrize("large", [False, True], ids=["row groups", "one row group"])
def test_parquet_is_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(encoded, "LARGEST_GROUP", 1)
    monkeypatch.setattr(encoded, "REACH", 4000)
    pictures = [picture() for _ in range(11)]
    dataset = Image().open(parquet_of(tmp_path / "a.parquet", pictures))
    assert list(dataset.shards) == ([0] if large else [0, 4, 8])
    order = [10, 0, 5, 5, 3, 9]
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))) if not large else (dataset,):
        for index, sample in zip(order, copy.read(order), strict=True):
            assert isinstance(sample, Sample)
            np.testing.assert_array_equal(sample.data, pictures[index].transpose(2, 0, 1))
    assert dataset.columns() == ["label", "word"]
    assert dataset.column("label").tolist() == list(range(11))
    assert dataset.column("word")[3] == "w3"


def test_workers_share_what_was_copied_from_a_large_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "LARGEST_GROUP", 1)
    source = Image().open(parquet_of(tmp_path / "a.parquet", [picture() for _ in range(8)])).source
    expected = [bytes(item) for item in source.fetch(range(8))]
    loader = torch.utils.data.DataLoader(
        _Fetched(source), batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    assert list(loader) == expected


class _Fetched(torch.utils.data.Dataset):
    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        if index >= len(self):
            raise IndexError
        return bytes(self.source.fetch([index])[0])


def test_arrow_streams_and_folders_of_tables_are_read(tmp_path: Path) -> None:
    pictures = [picture() for _ in range(6)]
    table = pa.table({"img": [png(one) for one in pictures]})
    for number in range(2):
        with pa.ipc.new_stream(str(tmp_path / f"data-{number}.arrow"), table.schema) as writer:
            writer.write_table(table.slice(3 * number, 3), max_chunksize=2)
    found = read_all(tmp_path)
    np.testing.assert_array_equal(np.stack(found), np.stack(pictures).transpose(0, 3, 1, 2))
    feather.write_feather(table, str(tmp_path / "whole.feather"))
    for source in (tmp_path, tmp_path / "data-0.arrow", tmp_path / "whole.feather"):
        assert recognise(source) == ("image", "pictures in column 'img'")
    with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), pa.schema([("a", pa.int64())])) as writer:
        writer.write_table(pa.table({"a": [1, 2]}))
    assert read_table(tmp_path / "rows.arrow").column("a").to_pylist() == [1, 2]


@pytest.mark.parametrize("shape", [(5, 9, 8), (5, 9, 8, 3), (5, 3, 9, 8), (5, 9, 8, 6)])
def test_arrays_of_any_layout_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = RANDOM.integers(0, 256, shape).astype(np.uint8)
    np.savez(tmp_path / "a.npz", pictures=values, kind=np.arange(5))
    dataset = Image().open(tmp_path / "a.npz")
    assert dataset.columns() == ["kind"]
    assert dataset.column("kind").tolist() == [0, 1, 2, 3, 4]
    expected = values.reshape(5, -1, 9, 8) if len(shape) == 3 or shape[1] == 3 else values.transpose(0, 3, 1, 2)
    for source in (tmp_path / "a.npz", values):
        np.testing.assert_array_equal(np.stack(read_all(source)), expected)


def test_real_numbers_keep_their_range() -> None:
    digits = RANDOM.integers(0, 17, (6, 8, 8)).astype(np.float64)
    digits[0, 0, :2] = 0, 16
    found = np.stack(read_all(digits))
    np.testing.assert_allclose(found[:, 0] / 65535, digits / 16, atol=1e-4)


class _Tuples(torch.utils.data.Dataset):
    def __init__(self, count: int = 5) -> None:
        self.pictures = [picture(8, 8) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError
        return Pillow.fromarray(self.pictures[index]), index * 10


class _Busy(_Tuples):
    """Refuses to be asked while it is at work."""

    busy = False

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.busy:
            raise RuntimeError("asked by two threads")
        self.busy = True
        time.sleep(0.001)
        self.busy = False
        return super().__getitem__(index % 5)


class _Broken(_Tuples):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index in (0, 3):
            raise OSError("truncated")
        return super().__getitem__(index)


def test_torch_datasets_and_lists_are_read() -> None:
    dataset = _Tuples()
    expected = np.stack(dataset.pictures).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(np.stack(read_all(dataset)), expected)
    assert Image().open(dataset).column("label").tolist() == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(np.stack(read_all(dataset.pictures)), expected)
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(expected))
    np.testing.assert_array_equal(np.stack(read_all(tensors)), expected)
    assert Image.recognise(dataset)[0] > 0.5
    assert Image.recognise(["a text", "another"])[0] == 0


def test_a_dataset_is_asked_for_one_item_at_a_time_also_by_threads_and_in_copies() -> None:
    opened = pickle.loads(pickle.dumps(Image().open(_Busy())))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: opened.read([index])[0], range(40)))
    assert all(isinstance(item, Sample) for item in found)


def test_labels_of_a_dataset_are_read_past_its_broken_items() -> None:
    opened = Image().open(_Broken())
    assert opened.columns() == ["label"]
    assert opened.column("label").tolist() == [None, 10, 20, None, 40]


def test_hugging_face_datasets_are_read() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is an extra")
    pictures = [picture(8, 8) for _ in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [Pillow.fromarray(one) for one in pictures], "label": [0, 1, 1, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    np.testing.assert_array_equal(np.stack(read_all(dataset)), np.stack(pictures).transpose(0, 3, 1, 2))
    opened = Image().open(dataset)
    assert opened.column("label").tolist() == [0, 1, 1, 0]
    assert Image.recognise(dataset)[0] > 0.9
    for other in (dataset.with_transform(lambda rows: {"x": [1]}), dataset.with_format("arrow")):
        np.testing.assert_array_equal(np.stack(read_all(other)), np.stack(read_all(dataset)))
    table = frame(dataset.shuffle(seed=0))
    assert table is not None
    assert table.column_names == ["label"], "pictures are not copied to see whether they are a table"
    assert frame(dataset.select_columns(["image"])) is None
    with pytest.raises(LabelfreeError, match="splits train"):
        Image().open(datasets.DatasetDict(train=dataset))


def test_labels_are_folders_columns_or_a_table_beside(tmp_path: Path) -> None:
    folder_of(tmp_path / "pictures")
    table = "file,age\n" + "".join(f"{i}.png,{20 + i}\n" for i in range(6))
    for place in (tmp_path, tmp_path / "pictures"):
        (place / "labels.csv").write_text(table)
        dataset = Image().open(tmp_path / "pictures")
        assert dataset.columns() == ["folder", "file", "age"]
        assert dataset.column("folder").tolist() == ["even"] * 3 + ["odd"] * 3
        assert dataset.column("age").tolist() == [20, 22, 24, 21, 23, 25]
    assert dataset.name(0) == "even/0.png"
    with pytest.raises(LabelfreeError, match=r"no column 'ago'.*Did you mean 'age'"):
        dataset.column("ago")


def test_a_test_set_takes_the_form_of_the_training_set(tmp_path: Path) -> None:
    modality = Image(ImageSettings(size=16))
    modality.fit(modality.open(RANDOM.integers(0, 4096, (4, 20, 20)).astype(np.uint16)))
    again = Image(ImageSettings(size=16))
    again.load_state(json.loads(json.dumps(modality.state())))
    assert again.channels == 1
    (tmp_path / "a.png").write_bytes(png(np.full((30, 40, 3), 255, np.uint8)))
    (sample,) = again.open(tmp_path / "a.png").read([0])
    assert isinstance(sample, Sample)
    assert sample.data.shape == (1, 20, 20)
    assert sample.data.dtype == np.uint16
    assert sample.data.min() == 65535


def test_a_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    first = Image().open(folder_of(tmp_path / "a")).fingerprint()
    assert first == Image().open(tmp_path / "a").fingerprint()
    (tmp_path / "a" / "odd" / "new.png").write_bytes(png(picture()))
    assert first != Image().open(tmp_path / "a").fingerprint()


# ---- bad input


def test_damaged_files_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    folder_of(tmp_path, 20)
    whole = io.BytesIO()
    Pillow.fromarray(picture(64, 64)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:1000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.png").write_text("no picture")
    dataset = Image().open(tmp_path)
    bad = {item.name: item.reason for item in dataset.read(range(len(dataset))) if isinstance(item, Unreadable)}
    assert set(bad) == {"cut.jpg", "empty.png", "words.png"}
    assert "truncated" in bad["cut.jpg"]
    assert dataset.describe().facts["unreadable"] == "2 of 23 looked at"


def test_missing_values_are_the_lowest_but_a_picture_of_them_alone_is_unreadable() -> None:
    values = RANDOM.random((3, 8, 8)).astype(np.float32)
    values[0, 2, 2], values[1] = np.nan, np.nan
    first, none, _ = Image().open(values).read([0, 1, 2])
    assert isinstance(first, Sample)
    assert first.data[0, 2, 2] == 0
    assert isinstance(none, Unreadable)


def test_sources_that_cannot_be_used_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("a")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "bad.parquet").write_text("a")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("a")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 8, 8), np.uint8), b=np.zeros((3, 8, 8), np.uint8))
    expected = {
        "missing": "nothing at",
        "empty": "holds no pictures.*no files",
        "words": "found: 1 .txt",
        "a.txt": "no source of pictures",
        "bad.parquet": "cannot be read",
        "broken": "None of the 1 pictures.*'a.png'",
        "two.npz": "several: a, b.*column=NAME",
    }
    for name, words in expected.items():
        with pytest.raises(LabelfreeError, match=words):
            Image().open(tmp_path / name)
    assert len(read_all(tmp_path / "two.npz", column="b")) == 3
    with pytest.raises(LabelfreeError, match="source is empty"):
        Image().open(np.zeros((0, 8, 8), np.uint8))


def test_data_without_anything_to_learn_is_refused() -> None:
    modality = Image()
    with pytest.raises(LabelfreeError, match="at least two"):
        modality.fit(modality.open(RANDOM.integers(0, 256, (1, 8, 8)).astype(np.uint8)))
    with pytest.raises(LabelfreeError, match="one constant value"):
        modality.fit(modality.open(np.full((5, 8, 8), 7, np.uint8)))
    with pytest.raises(LabelfreeError, match="are the same"):
        modality.fit(modality.open(np.stack([picture(8, 8)] * 4)))


def test_channels_that_cannot_be_brought_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(8, 8)))
    bands = [Pillow.fromarray(picture(8, 8, 1)[..., 0]) for _ in range(5)]
    bands[0].save(tmp_path / "b.tif", save_all=True, append_images=bands[1:])
    with pytest.raises(LabelfreeError, match="differ in their channels"):
        Image().open(tmp_path)


# ---- views


def batch_of(modality: Image, count: int = 8, shape: tuple[int, ...] = (20, 20, 3)) -> Any:
    dataset = modality.open(RANDOM.integers(0, 256, (count, *shape)).astype(np.uint8))
    modality.fit(dataset)
    return modality.collate([item for item in dataset.read(range(count)) if isinstance(item, Sample)])


@pytest.mark.parametrize("size", [5, 16, 40], ids=["shrinking", "alike", "growing"])
def test_a_crop_is_pillows_resize_of_the_same_box(size: int) -> None:
    height, width = 18, 25
    data = torch.from_numpy(RANDOM.integers(0, 256, (12, 2, height, width)).astype(np.uint8))
    draw = Draw.start(0, 0, 0, torch.arange(12))
    boxes = random_boxes(torch.full((12,), width / height), draw, Policy(flip=0.5))
    ours = crop(data, boxes, size)
    for number in range(12):
        x0, y0, x1, y1 = boxes[number].tolist()
        box = (min(x0, x1) * width, y0 * height, max(x0, x1) * width, y1 * height)
        for channel in range(2):
            plane = Pillow.fromarray(data[number, channel].numpy().astype(np.float32))
            theirs = np.asarray(plane.resize((size, size), Pillow.Resampling.BICUBIC, box=box))
            theirs = theirs[:, ::-1] if x0 > x1 else theirs
            np.testing.assert_allclose(ours[number, channel].numpy(), theirs, atol=0.05)


def test_random_boxes_have_the_area_and_the_ratio_asked_for() -> None:
    aspect = torch.tensor([0.25, 1.0, 3.0]).repeat_interleave(2000)
    boxes = random_boxes(aspect, Draw.start(1, 0, 0, torch.arange(6000)), Policy(crop=(0.1, 0.5)))
    width, height = (boxes[:, 2] - boxes[:, 0]).abs(), boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    ratio = width / height * aspect
    assert ratio.min() > 0.749
    assert ratio.max() < 1.334
    area = width * height
    assert area.min() > 0.099
    assert area.max() < 0.501
    assert abs((boxes[:, 0] > boxes[:, 2]).float().mean() - 0.5) < 0.03
    assert abs(area[2000:4000].mean() - 0.3) < 0.01


def test_the_whole_picture_of_its_own_size_comes_through_unchanged() -> None:
    data = torch.from_numpy(RANDOM.integers(0, 256, (3, 3, 16, 16)).astype(np.uint8))
    whole = central_boxes(torch.ones(3))
    torch.testing.assert_close(crop(data, whole, 16), data.float(), atol=1e-3, rtol=0)


def test_a_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    modality = Image(ImageSettings(size=16, augment="S", solarise=0.3))
    batch = batch_of(modality)
    draw = Draw.start(3, 1, 5, batch.index)
    whole = modality.view(batch, draw.view(0))
    some = torch.tensor([6, 1, 3])
    part = modality.view(batch[some], Draw.start(3, 1, 9, batch.index[some]).view(0))
    torch.testing.assert_close(whole.data[some], part.data, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.extra["crop"][some], part.extra["crop"], atol=0, rtol=0)
    assert torch.equal(whole.data, modality.view(batch, draw.view(0)).data)
    assert (whole.data - modality.view(batch, draw.view(1)).data).abs().mean() > 0.1


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("augment", ["A", "S", "W", "V", "none"])
def test_views_of_any_number_of_channels_stay_in_range(channels: int, augment: str) -> None:
    modality = Image(ImageSettings(size=12, augment=augment, solarise=0.5))
    batch = batch_of(modality, 16, (20, 14, channels))
    view = modality.view(batch, Draw.start(0, 0, 0, batch.index))
    state = modality.state()
    unit = view.data * torch.tensor(state["std"])[:, None, None] + torch.tensor(state["mean"])[:, None, None]
    assert view.data.shape == (16, channels, 12, 12)
    assert unit.min() > -1e-4
    assert unit.max() < 1 + 1e-4
    assert modality.prepare(batch).data.shape == view.data.shape


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "grey"])
def test_a_colour_change_is_torchvisions(name: str) -> None:
    strengths = {
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        name: 1.0 if name == "grey" else 0.4,
    }
    x = torch.from_numpy(RANDOM.uniform(0.3, 0.6, (6, 3, 8, 8)).astype(np.float32))
    draw = Draw.start(0, 0, 0, torch.arange(6))
    ours = recolour(x.clone(), draw, Policy(jitter=1.0, **strengths))
    factors = draw.uniform(name, low=0.6, high=1.4)
    for number in range(6):
        if name == "grey":
            theirs = tv.rgb_to_grayscale(x[number], 3)
        else:
            theirs = getattr(tv, f"adjust_{name}")(x[number], float(factors[number]))
        torch.testing.assert_close(ours[number], theirs, atol=2e-3, rtol=0)


def test_a_hue_change_keeps_brightness_and_greys() -> None:
    x = torch.from_numpy(RANDOM.uniform(0.4, 0.6, (6, 3, 8, 8)).astype(np.float32))
    x[0] = x[0, :1]
    draw = Draw.start(0, 0, 0, torch.arange(6))
    turned = recolour(x.clone(), draw, Policy(jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0.5))
    torch.testing.assert_close(turned[0], x[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(tv.rgb_to_grayscale(turned), tv.rgb_to_grayscale(x), atol=2e-3, rtol=0)
    assert (turned[1:] - x[1:]).abs().mean() > 0.01


def test_blur_is_a_gaussian_of_the_asked_width() -> None:
    weights = blurring(torch.tensor([0.01, 1.0, 2.0]), 41)
    torch.testing.assert_close(weights[0], torch.eye(41))
    place = torch.arange(41) - 20.0
    for number, sigma in ((1, 1.0), (2, 2.0)):
        assert math.isclose(float((weights[number, 20] * place**2).sum()), sigma**2, rel_tol=0.02)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 41))


def test_light_views_are_crops_alone() -> None:
    modality = Image(ImageSettings(size=10, light_crop_min=1.0, flip=0.0))
    batch = batch_of(modality)
    draw = Draw.start(0, 0, 0, batch.index)
    light = modality.view(batch, draw, "light")
    torch.testing.assert_close(light.data.mean(), modality.prepare(batch).data.mean(), atol=0.05, rtol=0)
    plain = modality.view(batch, draw, "none")
    torch.testing.assert_close(plain.data, modality.prepare(batch).data)
    assert plain.draw is draw


def test_wide_pictures_are_prepared_without_distortion() -> None:
    boxes = central_boxes(torch.tensor([1.0, 1.3, 4.0, 0.25]))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.testing.assert_close(width, torch.tensor([1.0, 1.0, 1 / 3, 1.0]))
    torch.testing.assert_close(height, torch.tensor([1.0, 1.0, 1.0, 1 / 3]))


# ---- tokens and pretext tasks


def test_targets_are_patches_in_reading_order() -> None:
    modality = Image(ImageSettings(size=12, patch=4))
    batch = modality.prepare(batch_of(modality))
    targets = modality.targets(batch)
    assert targets.shape == (8, 9, modality.target_dim)
    second = batch.data[0, :, :4, 4:8].permute(1, 2, 0).flatten()
    torch.testing.assert_close(targets[0, 1], (second - second.mean()) / second.std(correction=0), atol=1e-3, rtol=1e-3)
    assert modality.token_loss(targets, targets).abs().max() == 0


def test_masks_hide_the_same_share_of_every_picture() -> None:
    modality = Image(ImageSettings(size=16, patch=4))
    batch = modality.prepare(batch_of(modality))
    mask = modality.sample_mask(batch, Draw.start(0, 0, 0, batch.index), 0.75)
    assert mask.shape == (8, 16)
    assert (mask.sum(dim=1) == 12).all()
    assert not torch.equal(mask[0], mask[1])


def test_rotation_turns_by_quarters() -> None:
    modality = Image(ImageSettings(size=12))
    batch = batch_of(modality)
    draw = Draw.start(0, 0, 0, batch.index)
    rotate = modality.transformations()["rotation"]
    upright = modality.view(batch, draw, "light").data
    for turns in range(rotate.count):
        turned = rotate.apply(batch, torch.full((8,), turns), draw).data
        torch.testing.assert_close(turned, upright.rot90(turns, (2, 3)))


def test_jigsaw_moves_tiles_and_loses_none() -> None:
    modality = Image(ImageSettings(size=12))
    batch = batch_of(modality)
    draw = Draw.start(0, 0, 0, batch.index)
    jigsaw = modality.transformations()["jigsaw"]
    whole = jigsaw.apply(batch, torch.zeros(8, dtype=torch.int64), draw).data
    moved = jigsaw.apply(batch, torch.full((8,), 5), draw).data
    for place, origin in enumerate(jigsaw_orders()[5]):
        (row, column), (y, x) = divmod(place, 3), divmod(origin, 3)
        torch.testing.assert_close(
            moved[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4],
            whole[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4],
        )


def test_jigsaw_orders_differ_widely() -> None:
    orders = np.array(jigsaw_orders())
    assert orders[0].tolist() == list(range(9))
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    distance = (orders[:, None] != orders).sum(axis=2) + 9 * np.eye(len(orders), dtype=int)
    assert distance.min() >= 7


def test_a_patch_that_does_not_divide_the_size_is_refused() -> None:
    with pytest.raises(LabelfreeError, match="patch=5 does not divide size=32"):
        _ = Image(ImageSettings(patch=5)).patch
    assert [Image(ImageSettings(size=size)).patch for size in (8, 28, 32, 64, 96, 224)] == [1, 2, 4, 8, 8, 16]


# ---- for people, baselines and defaults


def test_a_thumbnail_is_a_small_picture_of_the_true_shape() -> None:
    sample = Sample(keep(picture(30, 60), Form(3, 16, 16)), 3, meta={"aspect": 2.0})
    words = Image().show(sample)
    content = words.split("base64,")[1].split('"')[0]
    shown = Pillow.open(io.BytesIO(base64.b64decode(content)))
    assert shown.size == (96, 48)
    assert words.startswith("<img ")


def test_raw_features_are_standardised_by_the_training_set() -> None:
    modality = Image(ImageSettings(size=8))
    train = modality.open(RANDOM.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8))
    test = modality.open(RANDOM.integers(100, 256, (10, 8, 8, 3)).astype(np.uint8))
    modality.fit(train)
    ours, theirs = modality.raw_features(train, [test])
    assert ours.shape == (40, 192)
    assert theirs.shape == (10, 192)
    assert abs(ours.mean()) < 1e-5
    assert theirs.mean() > 0.3


def test_sources_are_recognised(tmp_path: Path) -> None:
    assert Image.recognise(folder_of(tmp_path / "a"))[0] > 0.9
    assert Image.recognise(parquet_of(tmp_path / "a.parquet", [picture()] * 2))[0] > 0.8
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("a")
    assert Image.recognise(tmp_path / "b")[0] == 0
    assert Image.recognise(np.zeros((5, 8, 8, 3), np.uint8))[0] > 0.8
    assert Image.recognise(np.zeros((5, 100), np.float32))[0] == 0
    assert Image.recognise("no/such/place")[0] == 0


@pytest.mark.parametrize(
    ("budget", "encoder", "stem", "size"),
    [
        (Budget(120, 4e11, False), "timm:resnet10t", 2, 32),  # two minutes of two cores
        (Budget(600, 4e11, False), "timm:resnet10t", 1, 32),
        (Budget(300, 4e11, False, views=False), "timm:resnet10t", 2, 32),  # whole pictures
        (Budget(4 * 3600, 4e11, False), "timm:resnet18", 1, 32),
        (Budget(36 * 3600, 4e11, False), "timm:resnet18", None, 128),
        (Budget(60, 2e14, True), "timm:resnet18", 1, 32),  # of a GPU
        (Budget(600, 2e14, True), "timm:resnet18", None, 224),
        (Budget(36000, 2e14, True), "timm:resnet50", None, 224),
        (Budget(None, 4e11, False), "timm:resnet18", 1, 32),  # the user said how many epochs
        (Budget(None, 2e14, True), "timm:resnet18", None, 224),
    ],
)
def test_network_and_pictures_are_as_large_as_the_time_allows(
    budget: Budget, encoder: str, stem: int | None, size: int
) -> None:
    found = Image().open(RANDOM.integers(0, 256, (50, 240, 300, 3)).astype(np.uint8)).describe()
    choices = {choice.key: choice for choice in Image().defaults(found, budget)}
    assert (choices["encoder"].value, choices["size"].value) == (encoder, size)
    assert (choices["stem"].value if stem else choices.get("stem")) == stem
    assert all(choice.reason for choice in choices.values())
    short = budget.seconds is not None and not budget.accelerator
    assert ("view_size" in choices) is (short and budget.views is not False and size == 32)
    Image(ImageSettings(size=choices["size"].value, stem=stem or "auto"))


@pytest.mark.parametrize(("size", "stem"), [(48, 1), (96, None)])
def test_a_size_that_was_asked_for_is_that_of_views_too(size: int, stem: int | None) -> None:
    asked = Image(ImageSettings(size=size))
    found = asked.open(RANDOM.integers(0, 256, (50, 200, 300, 3)).astype(np.uint8)).describe()
    choices = {choice.key: choice.value for choice in asked.defaults(found, Budget(3600, 4e11, False))}
    assert "view_size" not in choices
    assert choices.get("stem") == stem


@pytest.mark.parametrize(("side", "view"), [(64, 16), (28, 14), (24, None)])
def test_contrast_sees_small_views_in_short_trainings(side: int, view: int | None) -> None:
    found = Image().open(RANDOM.integers(0, 256, (50, side, side, 3)).astype(np.uint8)).describe()
    choices = {choice.key: choice.value for choice in Image().defaults(found, Budget(120, 4e11, False))}
    assert choices.get("view_size") == view


@pytest.mark.parametrize(
    ("count", "budget", "method"),
    [
        (300, Budget(120, 4e11, False), "instance"),
        (5000, Budget(120, 4e11, False), "simclr"),
        (300, Budget(120, 4e11, False, case=True), "simclr"),  # of which the memory knows nothing
        (300, Budget(None, 4e11, False), "simclr"),
        (300, Budget(120, 2e14, True), "simclr"),
    ],
)
def test_few_pictures_in_little_time_are_told_from_a_memory_of_all(count: int, budget: Budget, method: str) -> None:
    found = Image().open(np.zeros((count, 32, 32, 3), np.uint8)).describe()
    assert {choice.key: choice.value for choice in Image().defaults(found, budget)}["method"] == method


def test_pictures_too_few_to_learn_from_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 6)
    for path in sorted(folder.rglob("*.png"))[1:]:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LabelfreeError, match=r"Only 1 of 6 pictures tried can be read; 'even/2\.png': .+\."):
        Image().fit(Image().open(folder))


@pytest.mark.parametrize("nothing", [-9999.0, -3.4e38, 3.4e38])
@pytest.mark.parametrize("share", [1, 40], ids=["one pixel", "most pixels"])
def test_values_that_stand_for_none_leave_the_others_their_range(nothing: float, share: int) -> None:
    values = RANDOM.uniform(0, 300, (4, 8, 8)).astype(np.float32)
    expected = np.stack(read_all(values))
    values[2].flat[:share] = nothing
    found = np.stack(read_all(values))
    there = values[:, None] != np.float32(nothing)
    np.testing.assert_allclose(found[there] / 65535, expected[there] / 65535, atol=0.05)
    assert np.unique(found[~there]).tolist() == [0 if nothing < 0 else 65535]


def test_far_values_are_kept_where_they_are_not_alone() -> None:
    values = RANDOM.uniform(0, 1, (4, 8, 8)).astype(np.float32)
    values[0] = RANDOM.uniform(0, 1000, (8, 8))
    found = np.stack(read_all(values))
    np.testing.assert_allclose(found[0, 0] / 65535, (values[0] - values.min()) / np.ptp(values), atol=1e-4)


def test_few_pictures_are_looked_at_for_the_range_of_a_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modality_file, "MEASURE_VALUES", 1)
    values = RANDOM.random((300, 4, 4)).astype(np.float32) + 2
    fetched: list[int] = []
    fetch = Arrays.fetch
    monkeypatch.setattr(Arrays, "fetch", lambda self, where: fetched.extend(where) or fetch(self, where))
    headers, _ = look_through(Arrays(values))
    fetched.clear()
    form = find_form(Arrays(values), headers, None, 64)
    assert 64 <= len(fetched) < 128
    assert 2 <= form.low < 2.01
    assert 2.99 < form.high <= 3


def test_the_range_is_that_of_the_pictures_that_can_be_read(tmp_path: Path) -> None:
    for number in range(4):
        Pillow.fromarray(np.full((32, 32), 100 * number, np.uint16)).save(tmp_path / f"{number}.tif")
    content = (tmp_path / "1.tif").read_bytes()
    (tmp_path / "1.tif").write_bytes(content[: len(content) // 2])
    dataset = Image().open(tmp_path)
    assert [isinstance(item, Sample) for item in dataset.read(range(4))] == [True, False, True, True]


def test_a_header_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(picture(8, 6))
    monkeypatch.setattr(Pillow.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert (header(content).width, header(content).height) == (6, 8)


def test_pictures_in_memory_are_read_as_their_files_are(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    values = picture(8, 12, 4)
    Pillow.fromarray(values).save(tmp_path / "a.png", exif=exif)
    with Pillow.open(tmp_path / "a.png") as opened:
        for channels in (3, 4):
            (of_file,) = read_all(tmp_path / "a.png", channels=channels)
            (in_memory,) = read_all([opened], channels=channels)
            assert of_file.shape == (channels, 12, 8)
            np.testing.assert_array_equal(in_memory, of_file)
