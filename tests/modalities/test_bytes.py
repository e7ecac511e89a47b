"""Bytes: any file comes through unchanged, in whole or in pieces, and is the last guess at what a source is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from labelfree.data.draw import Draw
from labelfree.errors import LabelfreeError
from labelfree.modalities import bytes as module
from labelfree.modalities.bytes import Bytes, BytesSettings
from labelfree.training.plan import recognise

EVERY = bytes(range(256))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.exe").write_bytes(EVERY * 5)
    (tmp_path / "a" / "two").write_bytes(EVERY[::-1])
    (tmp_path / "a" / "empty.log").write_bytes(b"")
    return tmp_path / "a"


def content(modality: Bytes, ids: np.ndarray) -> bytes:
    return modality.vocabulary.decode(ids).encode("latin-1")


def test_every_byte_survives(folder: Path) -> None:
    modality = Bytes(BytesSettings(max_length=4096))
    dataset = modality.open(folder)
    names = [dataset.name(i) for i in range(3)]
    read = dict(zip(names, dataset.read(range(3)), strict=True))
    assert content(modality, read["one.exe"].data) == EVERY * 5
    assert content(modality, read["two"].data) == EVERY[::-1]
    assert len(read["empty.log"].data) == 1, "an empty file is its separator"


def test_long_files_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 100)
    modality = Bytes(BytesSettings(length=33))
    dataset = modality.open(folder)
    pieces = dataset.pieces()
    texts = pieces.texts(range(len(pieces)))
    assert max(map(len, texts)) == 100
    together = "".join(texts).encode("latin-1")
    assert together in (EVERY * 5 + EVERY[::-1], EVERY[::-1] + EVERY * 5)
    blocks = modality.training_set(dataset)
    packed = b"".join(content(modality, item.data) for item in blocks.read(range(len(blocks) - 1)))
    assert packed == together[: len(packed)]


def test_no_more_of_a_file_is_read_than_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality = Bytes(BytesSettings(max_length=100))
    dataset = modality.open(folder / "one.exe")
    asked: list[int] = []
    encode = dataset.encode
    monkeypatch.setattr(dataset, "encode", lambda texts: asked.extend(map(len, texts)) or encode(texts))
    (whole,) = dataset.read([0])
    assert asked == [100]
    assert content(modality, whole.data) == EVERY[:98]
    (longer,) = Bytes(BytesSettings(max_length=1024)).open(dataset).read([0])
    assert len(longer.data) == 1023


def test_bytes_are_counted_all_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 16) + np.random.default_rng(0).bytes(15 << 16))
    modality = Bytes()
    modality.fit(modality.open(tmp_path / "disk.img"))
    share = modality.target_bias().exp()
    assert share[0] == pytest.approx(1 / 16 + 15 / 16 / 256, rel=0.2)
    assert share[1:256].min() > 0.5 / 256


def test_lists_and_columns(folder: Path) -> None:
    modality = Bytes()
    assert recognise([EVERY, b"two"])[0] == "bytes"
    for source in ([EVERY, "é"], pa.table({"x": pa.array([EVERY, "é".encode()]), "label": ["a", "b"]})):
        first, second = modality.open(source).read([0, 1])
        assert content(modality, first.data) == EVERY
        assert content(modality, second.data) == "é".encode()
    assert modality.open(source).column("label").tolist() == ["a", "b"]


def test_bytes_are_the_last_guess(folder: Path) -> None:
    assert recognise(folder) == ("bytes", "nothing else fits 3 file(s): they are read as bytes")
    for number in range(4):
        (folder / f"{number}.txt").write_text("now most of it is text\n")
    assert recognise(folder)[0] == "text"
    assert Bytes.recognise(folder.parent / "none") == (0.0, "")


def test_whole_spans_are_hidden() -> None:
    modality = Bytes(BytesSettings(span=6))
    batch = modality.prepare(modality.collate(modality.open([EVERY, EVERY[::-1]] * 4).read(range(8))))
    mask = modality.sample_mask(batch, Draw.start(0, 0, 0, torch.arange(8)), 0.3)
    assert mask.sum(dim=1).unique().tolist() == [round(0.3 * batch.data.shape[1])]
    edges = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
    assert edges.max() < 2 * mask[0].sum() / 6 + 6, "few runs, so long ones"


def test_text_and_binary_are_shown_and_measured_as_what_they_are() -> None:
    modality = Bytes()
    words = modality.open([f"file number {n} says <hello>".encode() for n in range(8)])
    assert "&lt;hello&gt;" in modality.show(words.read([0])[0])
    assert modality.raw_features(words, [])[0].shape[0] == 8
    binary = modality.open([bytes([n, 0, 255, 3 * n]) * 40 for n in range(8)])
    assert "<pre>00 00 ff 00" in modality.show(binary.read([0])[0])
    train, test = modality.raw_features(binary, [binary])
    assert np.array_equal(train.toarray(), test.toarray())


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(LabelfreeError, match="holds no bytes: 1 files, all empty"):
        Bytes().open(tmp_path)
    with pytest.raises(LabelfreeError, match="holds int"):
        Bytes().open([b"a", 3])
    with pytest.raises(LabelfreeError, match="All texts are the same"):
        Bytes().fit(Bytes().open([b"same", b"same"]))


@pytest.mark.parametrize("name", ["data.csv.gz", "folder/data.ZIP"])
def test_what_is_packed_is_to_be_unpacked_and_not_learnt_by_chance(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(EVERY)
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(LabelfreeError, match=r"is packed \(\.\w+\)\. Unpack it .* --modality bytes"):
        recognise(source)
    assert len(Bytes().open(source)) == 1
