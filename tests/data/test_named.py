"""Tables that name files: read as these where they are there, refused where they are not, never learnt as words."""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import labelfree
from labelfree.cli import main
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.named import naming_columns
from labelfree.errors import LabelfreeError
from labelfree.modalities.audio import Audio
from labelfree.modalities.image import Image as Pictures
from labelfree.modalities.pair import Pair, PairSettings
from labelfree.modalities.text import Text
from labelfree.training.plan import recognise

COUNT = 24


def table(path: Path, suffix: str = "png", **columns: Sequence[str]) -> Path:
    """A CSV that names `COUNT` files, with more columns."""
    columns = {"photo": [f"number {n}.{suffix}" for n in range(COUNT)], **columns}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def pictures(folder: Path) -> None:
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"number {number}.png")


COLOURS = ["red", "blue"] * (COUNT // 2)
CAPTIONS = [f"a picture of thing {n}" for n in range(COUNT)]


def test_which_columns_name_files() -> None:
    columns = pa.table(
        {
            "a": ["x/1.png", "2.JPG", None, ""],
            "b": ["a note on readme.md", "and more", "words", "words"],
            "c": ["1.wav", "2.flac", "3.mp3", "4.opus"],
            "d": [1, 2, 3, 4],
            "e": pa.nulls(4),
            "f": [None, "", " ", None],
        }
    )
    assert naming_columns(columns) == ["a", "c"]
    assert naming_columns(columns, (".png", ".jpg")) == ["a"]


@pytest.mark.parametrize("more", [{}, {"colour": COLOURS}, {"caption": [""] * COUNT, "colour": COLOURS}])
def test_a_table_that_names_pictures_is_pictures(tmp_path: Path, more: dict[str, list[str]]) -> None:
    pictures(tmp_path)
    source = table(tmp_path / "list.csv", **more)
    assert recognise(source) == ("image", "pictures named by column 'photo'")
    (tmp_path / "number 3.png").unlink()
    dataset = Pictures().open(source)
    assert len(dataset) == COUNT
    read = dataset.read([2, 3])
    assert isinstance(read[0], Sample)
    assert isinstance(read[1], Unreadable)
    assert (read[1].name, read[1].reason) == ("number 3.png", "is missing")
    if "colour" in more:
        assert dataset.column("colour").tolist() == COLOURS


def test_a_table_that_names_recordings_is_sounds(tmp_path: Path) -> None:
    for number in range(COUNT):
        with wave.open(str(tmp_path / f"number {number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.random.default_rng(number).integers(-999, 999, 8000, dtype=np.int16).tobytes())
    source = table(tmp_path / "list.csv", "wav", colour=COLOURS)
    assert recognise(source)[0] == "audio"
    assert isinstance(Audio().open(source).read([5])[0], Sample)


@pytest.mark.parametrize(
    "more", [{}, {"colour": COLOURS}, {"caption": CAPTIONS, "colour": COLOURS}, {"caption": [""] * COUNT}]
)
def test_names_of_files_that_are_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, list[str]]
) -> None:
    source = table(tmp_path / "list.csv", **more)
    for where in (source, tmp_path):
        with pytest.raises(LabelfreeError, match="'photo' names files, none of which is in"):
            recognise(where)
    assert main(["pretrain", str(source), "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    assert "Put the table beside its files" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("columns", [(), ("photo", "caption")])
def test_pairs_do_not_learn_names_of_files(tmp_path: Path, columns: tuple[str, ...]) -> None:
    source = table(tmp_path / "list.csv", caption=CAPTIONS, colour=COLOURS)
    with pytest.raises(LabelfreeError, match="'photo' names files, none of which is in"):
        Pair(PairSettings(columns=columns)).open(source)


def test_pairs_keep_the_few_files_that_are_there(tmp_path: Path) -> None:
    pictures(tmp_path)
    for number in range(COUNT - 4):
        (tmp_path / f"number {number}.png").unlink()
    pairs = Pair(PairSettings(columns=("photo", "caption"))).open(table(tmp_path / "list.csv", caption=CAPTIONS))
    assert (pairs.order, pairs.there().sum(axis=0).tolist()) == (("image", "text"), [4, COUNT])


def test_names_of_files_are_no_text_unless_asked_for(tmp_path: Path) -> None:
    source = table(tmp_path / "list.csv")
    with pytest.raises(LabelfreeError, match="no column of text: 'photo' names files"):
        Text().open(source)
    assert len(Text(Text.settings_class.read({"column": "photo"}, "text")).open(source)) == COUNT
    assert "caption" in Text().open(table(tmp_path / "list.csv", caption=["brief"] * COUNT)).describe().facts["source"]


def test_columns_without_values_are_no_series(tmp_path: Path) -> None:
    source = table(tmp_path / "list.csv", photo=CAPTIONS, colour=[""] * COUNT)
    assert recognise(source)[0] == "text"


def named_files(folder: Path) -> list[Path]:
    """Pictures of two classes, in the folders of these."""
    for number in range(COUNT):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return sorted(folder.glob("*/*.png"), key=lambda path: int(path.stem))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_list_of_file_names_is_these_files_in_its_order(tmp_path: Path, kind: type) -> None:
    paths = named_files(tmp_path)
    modality, words = recognise([kind(path) for path in paths])
    assert (modality, words) == ("image", "a list that names 24 pictures")
    dataset = Pictures().open([kind(path) for path in paths])
    assert [dataset.name(index) for index in (0, 1, 23)] == ["even/0.png", "odd/1.png", "odd/23.png"]
    assert dataset.column("folder").tolist() == ["even", "odd"] * (COUNT // 2)
    sample = dataset.read([3])[0]
    assert isinstance(sample, Sample)
    np.testing.assert_array_equal(sample.data, np.asarray(Image.open(paths[3])).transpose(2, 0, 1))
    other = Pictures().open([kind(path) for path in paths[1:]])
    assert dataset.fingerprint() != other.fingerprint()


def test_a_table_of_names_that_is_meant_as_a_table_is_one(tmp_path: Path) -> None:
    source = table(tmp_path / "list.csv", colour=COLOURS, size=["small", "large", "huge"] * (COUNT // 3))
    run = labelfree.pretrain(source, modality="table", steps=1, batch_size=4, out=tmp_path / "run", threads=1)
    assert run.state == "finished"


def test_a_table_beside_files_that_names_none_of_them_is_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("name,animal\nzero,cat\none,dog\n")
    with pytest.raises(LabelfreeError, match=r"labels.csv' names none of its files, such as '0.png'"):
        Pictures().open(tmp_path).column("animal")


def test_missing_files_of_a_list_are_quarantined_and_a_list_of_none_is_refused(tmp_path: Path) -> None:
    paths = named_files(tmp_path)
    paths[5].unlink()
    missing = Pictures().open(paths).read([5])[0]
    assert isinstance(missing, Unreadable)
    assert "missing" in missing.reason
    with pytest.raises(LabelfreeError, match=r"3 files, none of which is there; 'a\.png' for one"):
        recognise(["a.png", "b.png", "c.png"])


def test_a_list_of_text_files_is_their_texts_and_one_of_texts_stays_what_it_is(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_text(f"the words of text number {number}")
    assert recognise(list(map(str, paths))) == ("text", "a list that names 4 text files")
    assert Text().open(paths).texts([2]) == ["the words of text number 2"]
    words = ["a note on readme.md", "it ends in words", "as do these"]
    assert recognise(words) == ("text", "3 strings")
    assert Text().open(words).texts([0]) == words[:1]


def test_pretraining_takes_a_list_of_files(tmp_path: Path) -> None:
    import labelfree

    paths = named_files(tmp_path)
    run = labelfree.pretrain(
        paths, encoder="timm:test_resnet", steps=2, batch_size=8, size=8, seed=0, out=tmp_path / "run"
    )
    assert run.embed(paths[:5]).shape[0] == 5
    found = run.evaluate(paths, label="folder", budgets=["100%"], protocols=["knn"], seeds=1)
    assert {row.method for row in found.results} >= {"pretrained", "random"}
