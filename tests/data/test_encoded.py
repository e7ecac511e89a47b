"""Tables of encoded items in shards: which are open, and what they must have in common."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import feather, parquet

from labelfree.data import encoded, loader, sources
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.dataset import Dataset
from labelfree.data.encoded import Files, Kind, Table
from labelfree.data.sampler import Order
from labelfree.errors import LabelfreeError
from labelfree.modalities.image import Image as Pictures


class Things(Dataset):
    """The items of a table as samples."""

    def __init__(self, table: Table) -> None:
        self.table, self.shards = table, table.shards

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Any) -> list[Any]:
        found = zip(indices, self.table.fetch(list(indices)), strict=True)
        return [Unreadable(i, "", "") if isinstance(item, Exception) else Sample(np.zeros(1), i) for i, item in found]

    def describe(self) -> Any: ...

    def fingerprint(self) -> str:
        return ""


PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
THINGS = Kind("things", (".thing",), ("thing",), "Thing")


def shard(path: Path, **columns: Any) -> Path:
    (parquet.write_table if path.suffix == ".parquet" else feather.write_feather)(pa.table(columns), path)
    return path


def open_files(paths: list[Path]) -> int:
    """How many of the files this process has open."""
    wanted = {(path.stat().st_dev, path.stat().st_ino) for path in paths}
    found = 0
    for number in range(512):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        found += (status.st_dev, status.st_ino) in wanted
    return found


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_shards_are_open_only_while_they_are_read(tmp_path: Path, suffix: str) -> None:
    paths = [shard(tmp_path / f"{n}{suffix}", thing=[b"%d" % n, b"x"], mark=[n, -n]) for n in range(5)]
    table = Table(paths, THINGS)
    assert [bytes(item) for item in table.fetch([8, 0, 5])] == [b"4", b"0", b"x"]
    assert table.column("mark").tolist() == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4]
    assert open_files(paths) == 0


def test_a_damaged_page_and_a_shard_that_is_gone_cost_their_own_items(tmp_path: Path) -> None:
    paths = [shard(tmp_path / f"{n}.parquet", thing=[b"%d" % n * 4000, b"x" * 4000]) for n in range(3)]
    table = Table(paths, THINGS)
    damaged = bytearray(paths[0].read_bytes())
    damaged[4:400] = bytes(396)
    paths[0].write_bytes(damaged)
    paths[1].unlink()
    found = table.fetch([0, 1, 2, 3, 4, 5])
    assert all(isinstance(item, Exception) for item in found[:4])
    assert [bytes(item)[:1] for item in found[4:]] == [b"2", b"x"]
    stream = loader._Stream(Things(table), Any, Order(6, 2, 0), 0, 1, None)
    assert stream._stand_in(0)[0] == 4


def test_a_damaged_page_of_large_row_groups_costs_its_own_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "LARGEST_GROUP", 1000)
    path = tmp_path / "things.parquet"
    things = pa.table({"thing": [b"%d" % number * 4000 for number in range(6)]})
    parquet.write_table(things, path, row_group_size=2, use_dictionary=False, compression="none")
    table = Table([path], THINGS)
    damaged = bytearray(path.read_bytes())
    damaged[4:40] = bytes(36)
    path.write_bytes(damaged)
    found = table.fetch(range(6))
    assert [isinstance(item, Exception) for item in found] == [True, True, False, False, False, False]
    assert [bytes(item)[:1] for item in found[2:]] == [b"2", b"3", b"4", b"5"]


def test_a_table_says_how_many_items_stay_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "things.parquet"
    parquet.write_table(pa.table({"thing": [os.urandom(1000) for _ in range(400)]}), path, row_group_size=20)
    monkeypatch.setattr(encoded, "REACH", 100_000)
    table = Table([path], THINGS)
    assert 40 <= table.reach <= 50
    assert Table([shard(tmp_path / "mapped.arrow", thing=[b"a"] * 9)], THINGS).reach == 0
    reads = []
    read = table._files[0].read
    table._files[0].read = lambda group, column: reads.append(group) or read(group, column)  # type: ignore[method-assign]
    order = Order(400, 8, seed=0, shards=table.shards, window=table.reach)
    for step in range(50):
        table.fetch(order.batch(step))
    assert len(reads) <= 25, "row groups are read about once an epoch"


def test_labels_of_several_types_in_shards_fit_together(tmp_path: Path) -> None:
    shards = {"0": [1, 2], "1": [1.5, None], "2": ["x", None]}
    paths = [shard(tmp_path / f"{name}.parquet", thing=[b"a"] * 2, mark=marks) for name, marks in shards.items()]
    assert Table(paths[:2], THINGS).column("mark")[:3].tolist() == [1, 2, 1.5]
    assert Table(paths, THINGS).column("mark").tolist() == ["1", "2", "1.5", "", "x", ""]


def test_files_are_looked_at_once_for_their_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{n}.thing" for n in range(3)]
    for path in paths:
        path.write_bytes(b"thing")
    asked: list[Path] = []
    monkeypatch.setattr(sources, "size_of", lambda path: asked.append(path) or 5)
    files = Files(paths, tmp_path)
    assert files.fingerprint() == files.fingerprint() == pickle.loads(pickle.dumps(files)).fingerprint()
    assert asked == paths


def test_a_shard_without_the_items_is_named(tmp_path: Path) -> None:
    first = shard(tmp_path / "0.parquet", thing=[b"a"], mark=[1], more=["m"])
    second = shard(tmp_path / "1.parquet", mark=[2])
    with pytest.raises(LabelfreeError, match=r"1\.parquet' has no column 'thing' of things, but '.*0\.parquet' has"):
        Table([first, second], THINGS)
    shard(second, thing=[b"b"], mark=[2])
    assert Table([first, second], THINGS).columns() == ["mark"], "what every shard has"


@pytest.mark.parametrize("largest", [1, 1 << 20], ids=["large row groups", "small row groups"])
def test_one_path_that_is_gone_is_one_unreadable_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(encoded, "LARGEST_GROUP", largest)
    for name in ("0.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [{"bytes": None, "path": f"{number}.png"} for number in range(3)]
    dataset = Pictures().open(shard(tmp_path / "t.parquet", image=pa.array(rows, PATHS)))
    for source in (dataset, pickle.loads(ForkingPickler.dumps(dataset))):  # as workers get it
        first, gone, last = source.read(range(3))
        assert isinstance(first, Sample)
        assert isinstance(last, Sample)
        assert isinstance(gone, Unreadable)
        assert gone.reason == "No such file or directory"


@pytest.mark.parametrize("shape", [(400, 16, 16), (400, 3, 16, 16)], ids=["grey", "channels first"])
def test_workers_share_the_file_of_an_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    dataset = Pictures().open(path)
    sent = ForkingPickler.dumps(dataset)
    assert len(sent) < 10_000 < path.stat().st_size
    for there, here in zip(pickle.loads(sent).read([399, 0]), dataset.read([399, 0]), strict=True):
        np.testing.assert_array_equal(there.data, here.data)


def test_folders_that_cannot_be_looked_into_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut", ".hidden"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    scandir = os.scandir

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    dataset = Pictures().open(tmp_path)
    assert [dataset.name(row) for row in range(len(dataset))] == ["open/a.png"]
    assert [(item.name, item.reason) for item in dataset.unreadable] == [("shut", "Permission denied")]
