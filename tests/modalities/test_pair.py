"""Pairs: sides found in sources of any make, rows that lack one, towers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cells import pairs
from PIL import Image

import labelfree
from labelfree import registry
from labelfree.data.batch import Sample, Unreadable
from labelfree.data.draw import Draw
from labelfree.encoders.towers import Towers
from labelfree.encoders.trunk import EMBEDDED
from labelfree.errors import LabelfreeError, Refusal
from labelfree.modalities.pair import Pair, PairSettings
from labelfree.modalities.pair.sources import sniff
from labelfree.needs import Need
from labelfree.objectives.clip import CLIP, CLIPSettings
from labelfree.training.plan import make_plan, recognise

SMALL = {"image.size": 16, "image.patch": 8, "text.length": 12}


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8))


def encoded(folder: Path, number: int) -> bytes:
    picture(number).save(folder / "one.png")
    return (folder / "one.png").read_bytes()


def opened(source: Any, **settings: Any) -> tuple[Pair, Any]:
    modality = Pair(PairSettings.read({"sides": SMALL, "width": 16, **settings}, "pair"))
    dataset = modality.open(source)
    modality.fit(dataset)
    return modality, dataset


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


# ---- sources


def test_a_table_of_paths_and_texts(captions: Path) -> None:
    modality, dataset = opened(captions)
    assert list(modality.sides) == ["image", "text"]
    assert recognise(captions)[0] == "pair"
    assert (len(dataset), dataset.there().sum(axis=0).tolist()) == (64, [60, 60])
    assert dataset.describe().facts["a side missing"] == "8 rows"
    assert dataset.describe().facts["sides"] == "image = picture, text = caption"
    assert "tone" in dataset.columns()
    assert "caption" not in dataset.columns()
    with pytest.raises(LabelfreeError, match="is a side"):
        dataset.column("caption")


def test_rows_keep_their_sides_together(captions: Path) -> None:
    modality, dataset = opened(captions)
    both, no_text, no_image = dataset.read([3, 5, 9])
    assert [set(sample.parts) for sample in (both, no_text, no_image)] == [{"image", "text"}, {"image"}, {"text"}]
    expected = np.asarray(Image.open(captions.parent / "3.png"))
    assert np.array_equal(both.parts["image"].data[0], expected)
    assert "number 3 on" in modality.sides["text"].vocabulary.decode(both.parts["text"].data)  # type: ignore[attr-defined]
    assert [sample.data.tolist() for sample in (both, no_text, no_image)] == [[1, 1], [1, 0], [0, 1]]


def test_encoded_pictures_and_texts_in_parquet(tmp_path: Path) -> None:
    contents = [None if n == 4 else {"bytes": encoded(tmp_path, n), "path": None} for n in range(12)]
    texts = [None if n == 7 else f"a picture of thing {n}" for n in range(12)]
    pq.write_table(pa.table({"image": contents, "caption": texts, "label": ["a", "b"] * 6}), tmp_path / "t.parquet")
    _, dataset = opened(tmp_path / "t.parquet")
    assert [sorted(item.parts) for item in dataset.read([0, 4, 7])] == [["image", "text"], ["text"], ["image"]]
    assert dataset.column("label").tolist() == ["a", "b"] * 6
    assert dataset.describe().facts["sides"] == "image = image, text = caption"


def test_files_of_equal_names(tmp_path: Path) -> None:
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
        if number != 2:
            (tmp_path / f"{number}.txt").write_text(f"this is picture {number}")
    modality, dataset = opened(tmp_path)
    assert set(modality.sides) == {"image", "text"}
    assert sorted(dataset.read([2])[0].parts) == ["image"]
    text = dataset.read([5])[0].parts["text"]
    assert "picture 5" in modality.sides["text"].vocabulary.decode(text.data)  # type: ignore[attr-defined]


def test_names_that_repeat_in_folders_tie_the_files_of_one_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("ann/1", "ann/2", "bob/1", "bob/3")):
        for kind, suffix in (("pictures", "png"), ("words", "txt")):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            file = tmp_path / kind / f"{name}.{suffix}"
            picture(number).save(file) if kind == "pictures" else file.write_text(f"this is picture {number}")
    (tmp_path / "words" / "ann" / "2.txt").unlink()
    modality, dataset = opened(tmp_path)
    vocabulary = modality.sides["text"].vocabulary  # type: ignore[attr-defined]
    for number, item in enumerate(dataset.read(range(4))):
        assert np.array_equal(item.parts["image"].data.transpose(1, 2, 0), np.asarray(picture(number)))
        assert ("text" in item.parts) == (number != 1)
        assert number == 1 or f"picture {number}" in vocabulary.decode(item.parts["text"].data)


def test_a_film_of_several_clips_is_one_item_of_its_side(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="films need an extra")
    from films import ramp, write

    for number, count in enumerate((60, 200, 40)):
        write(tmp_path / f"{number}.mp4", ramp(count), rate=10)
        (tmp_path / f"{number}.txt").write_text(f"film number {number}")
    names = [str(tmp_path / f"{number}.mp4") for number in (2, 0, 1)]
    listed = {"video": [names[0], None, *names[1:]], "text": [f"film number {n}" for n in (2, 7, 0, 1)]}
    for source, expected in ((tmp_path, ["0", "1", "2"]), (listed, ["2", None, "0", "1"])):
        films = Pair().open(source).sides["video"]
        assert len(films.dataset) > 10
        assert [films.dataset.name(row)[0] if row >= 0 else None for row in films.rows.tolist()] == expected
    (tmp_path / "1.mp4").write_bytes(b"nothing")
    assert (Pair().open(tmp_path).sides["video"].rows >= 0).tolist() == [True, False, True]


def test_names_that_do_not_say_which_file_is_meant_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("a/1.png", "b/1.png", "c/1.txt", "c/2.txt")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("some words")
    with pytest.raises(LabelfreeError, match=r"has 2 files of image data called '1'.* Keep one file"):
        opened(tmp_path)
    captions = ["a/1.png,this is picture one", "b/1.png,this is picture two"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file,caption", *captions]))
    assert opened(tmp_path)[1].there().all(), "a table beside them says it"


def test_pictures_with_captions_beside_them_but_labels_are_no_side(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows = ["file,kind,caption"]
    for number in range(6):
        picture(number).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,{'big cat' if number % 2 else 'big dog'},this is picture {number}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    _, dataset = opened(tmp_path / "pictures")
    assert dataset.column("kind").tolist() == ["big dog", "big cat"] * 3
    (tmp_path / "metadata.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))
    assert recognise(tmp_path / "pictures")[0] == "image", "a label that repeats itself is not taken for a caption"
    assert opened(tmp_path / "pictures", columns="kind")[1].there().all(), "unless it is named"


def pictures_with(folder: Path, rows: list[str], encoding: str = "utf-8") -> Path:
    for number in range(len(rows) - 1):
        picture(number).save(folder / f"{number}.png")
    (folder / "metadata.csv").write_bytes("\n".join(rows).encode(encoding))
    return folder


def test_captions_of_another_encoding_and_separator_are_a_side(tmp_path: Path) -> None:
    rows = [f"{number}.png;ein größerer Bär, Nummer {number}" for number in range(6)]
    source = pictures_with(tmp_path, ["file;caption", *rows], "cp1252")
    assert recognise(source)[0] == "pair"
    modality, dataset = opened(source)
    assert list(modality.sides) == ["image", "text"]
    assert dataset.sides["text"].dataset.texts([3]) == ["ein größerer Bär, Nummer 3"]


def test_a_table_beside_pictures_that_cannot_be_used_leaves_them_pictures(tmp_path: Path) -> None:
    rows = [f"{number}.png,some words,of number {number}" for number in range(6)]
    source = pictures_with(tmp_path, ["file,caption,caption", *rows])
    assert recognise(source)[0] == "image"
    with pytest.raises(LabelfreeError, match=r"metadata.csv' has several columns named 'caption'"):
        Pair().open(source)


def test_a_dictionary_of_sources() -> None:
    source = {
        "image": np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), dtype=np.uint8),
        "text": [None if n == 1 else f"thing number {n}" for n in range(8)],
        "series": np.random.default_rng(1).normal(size=(8, 24)).astype(np.float32),
        "label": ["x", "y"] * 4,
    }
    assert recognise(source)[0] == "pair"
    modality, dataset = opened(source)
    assert list(modality.sides) == ["image", "text", "series"]
    assert sorted(dataset.read([1])[0].parts) == ["image", "series"]
    assert dataset.column("label").tolist() == ["x", "y"] * 4
    view = modality.view(modality.collate(dataset.read(range(8))), Draw.start(0, 0, 0, torch.arange(8)))
    assert Towers.build("nano+nano+nano", modality)(view).pooled.shape == (8, 48)


def test_a_broken_side_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    for name in ("good", "better"):
        picture(len(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "t.csv").write_text("file,text\ngood.png,a good one\nbad.png,a bad one\n,only some words\nbetter.png,")
    _, dataset = opened(tmp_path / "t.csv")
    good, bad, words = dataset.read([0, 1, 2])
    assert isinstance(good, Sample)
    assert isinstance(bad, Unreadable)
    assert bad.reason.startswith("image: ")
    assert sorted(words.parts) == ["text"]


# ---- batches


def test_another_row_stands_in_for_a_missing_side(captions: Path) -> None:
    modality, dataset = opened(captions)
    batch = modality.collate(dataset.read([5, 9, 3]))
    assert batch.data.tolist() == [[1, 0], [0, 1], [1, 1]]
    alone = modality.collate(dataset.read([9]))
    assert set(alone.parts) == {"image", "text"}
    assert torch.equal(alone.parts["image"].data[0], batch.parts["image"].data[1]), "whoever else is in the batch"


def test_a_side_that_is_not_there_changes_nothing_but_its_own_vector(captions: Path) -> None:
    modality, dataset = opened(captions)
    torch.manual_seed(0)
    encoder = Towers.build("nano+nano", modality).eval()
    view = modality.prepare(modality.collate(dataset.read([3, 5, 9])))
    with torch.no_grad():
        apart = encoder(view).pooled.unflatten(1, (2, -1))
    assert torch.equal(apart.norm(dim=2) > 0.5, view.data.bool())
    torch.testing.assert_close(apart.norm(dim=2)[view.data.bool()], torch.ones(4))


def test_pretraining_skips_rows_with_one_side(captions: Path) -> None:
    modality, dataset = opened(captions)
    assert len(modality.training_set(dataset, CLIP.needs)) == 56
    assert len(modality.training_set(dataset)) == 64


# ---- settings, towers


def test_settings_of_sides_reach_them_and_wrong_ones_are_refused(captions: Path) -> None:
    options: dict[str, Any] = {"modality": "pair", "method": "auto", "encoder": "auto", "seed": 0, "seconds": None}
    plan, data, _, _ = make_plan(captions, **options, settings={"image.size": "24", "text.length": 16})
    assert (plan.method, plan.encoder) == ("clip", "towers:timm:resnet18+transformer:nano")
    assert isinstance(data, Pair)
    assert data.sides["image"].settings.size == 24
    assert data.sides["text"].settings.length == 16
    for key, match in (("image.sise", "no setting 'sise'"), ("picture.size", "no kind of side 'picture'")):
        with pytest.raises(LabelfreeError, match=match):
            make_plan(captions, **options, settings={key: 24})


def test_a_frozen_tower_of_a_run_stays_as_it_was(captions: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"steps": 2, "batch_size": 8, "threads": 1, "text.length": 12}
    lone = labelfree.pretrain(
        captions.parent, modality="image", encoder="timm:test_resnet", method="simclr", out=tmp_path / "lone",
        size=16, steps=1, batch_size=8, threads=1,
    )  # fmt: skip
    run = labelfree.pretrain(
        captions, out=tmp_path / "run", frozen="image", **quick, **{"image.run": str(lone.path)},
        encoder="towers:timm:test_resnet+nano",
    )  # fmt: skip
    for name, value in lone.encoder.state_dict().items():
        assert torch.equal(value, run.encoder.state_dict()[f"towers.image.{name}"]), name
    assert run.modality.sides["image"].state() == lone.modality.state()  # type: ignore[attr-defined]


def test_a_run_starts_from_another(captions: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"steps": 1, "batch_size": 8, "threads": 1}
    asked = {"encoder": "towers:timm:test_resnet+nano", "text.length": 12, "image.size": 16}
    first = labelfree.pretrain(captions, out=tmp_path / "first", **quick, **asked)
    again = labelfree.pretrain(captions, out=tmp_path / "again", init=first.path, **quick)
    assert again.modality.state() == first.modality.state()
    assert again.info["encoder"] == first.info["encoder"]
    words = again.encoder.towers.text.stem.embedding.weight
    again.encoder.rescale()
    torch.testing.assert_close(words.std(dim=1), torch.full((len(words),), EMBEDDED))


def test_towers_stand_on_the_sides_of_any_kind_that_has_them(captions: Path) -> None:
    modality, _ = opened(captions)
    own = {"sides": modality.sides, "runs": {}, "settings": modality.settings}
    ours = SimpleNamespace(name="ours", offers=frozenset({Need.PAIR}), **own)
    built = registry.build_encoder("towers:nano+nano", ours)  # type: ignore[arg-type]
    assert list(built.towers) == list(modality.sides)


def test_towers_refuse_what_does_not_fit(captions: Path) -> None:
    modality, _ = opened(captions)
    with pytest.raises(LabelfreeError, match="names 1 networks for 2 sides"):
        registry.build_encoder("towers:nano", modality)
    with pytest.raises(Refusal, match="for pair, not for image"):
        registry.build_encoder("towers:nano+nano", modality.sides["image"])
    with pytest.raises(Refusal, match="no tower 'audio' to freeze"):
        CLIP(Towers.build("nano+nano", modality), modality, CLIPSettings(frozen=("audio",)))


# ---- bad input


@pytest.mark.parametrize(
    ("rows", "settings", "match"),
    [
        ("text,label\nsome words here,a\nother words here,b", {}, "one side was found at most"),
        ("file,text\none.png,\n,some words here", {}, "No row has two sides"),
        ("file,text\none.png,some words", {"columns": "file,capton"}, "no column 'capton'.*caption|no column 'capton'"),
    ],
)
def test_bad_tables_are_refused(rows: str, settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "one.png")
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(LabelfreeError, match=match):
        opened(tmp_path / "t.csv", **settings)


def test_sides_of_unequal_length_are_refused() -> None:
    with pytest.raises(LabelfreeError, match="8 of image, 7 of text"):
        opened({"image": np.zeros((8, 12, 12, 3), np.uint8), "text": [f"text number {n}" for n in range(7)]})


def test_raw_features_stand_beside_each_other(captions: Path) -> None:
    modality, dataset = opened(captions)
    train, test = modality.raw_features(dataset.chosen(np.arange(32)), [dataset.chosen(np.arange(32, 64))])
    assert train.shape == (32, test.shape[1])
    assert abs(train[[5]]).sum() > 0


def test_a_row_is_shown_by_its_sides(captions: Path) -> None:
    modality, dataset = opened(captions)
    shown = modality.show(dataset.read([3])[0])
    assert "<img" in shown
    assert "number 3" in shown


def test_the_sound_of_a_row_can_be_listened_to() -> None:
    pytest.importorskip("soundfile")
    sounds = [np.random.default_rng(n).normal(0, 0.1, 2000).astype(np.float32) for n in range(8)]
    texts = [f"thing number {n}" for n in range(8)]
    sides = {**SMALL, "audio.rate": 4000, "audio.mels": 16}
    modality, dataset = opened({"audio": sounds, "text": texts}, sides=sides)
    read, shown = (modality.show(items([3])[0]) for items in (dataset.read, dataset.shown))
    assert "<audio" not in read
    assert "<audio" in shown
    assert "number 3" in shown


def test_a_row_without_any_side_is_quarantined(tmp_path: Path) -> None:
    for number in range(24):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [",only words" if n == 5 else "," if n == 7 else f"{n}.png,thing number {n}" for n in range(24)]
    source = tmp_path / "t.csv"
    source.write_text("\n".join(["file,text", *rows]))
    modality, dataset = opened(source)
    tied = modality.training_set(dataset, CLIP.needs)
    assert (len(tied), tied.source_count()) == (22, 23)
    run = labelfree.pretrain(
        source, out=tmp_path / "run", steps=1, encoder="towers:nano+nano", max_unreadable=0.1, threads=1, **SMALL
    )
    listed = (run.path / "quarantine.jsonl").read_text().splitlines()
    assert [(entry["name"], entry["reason"]) for entry in map(json.loads, listed)] == [
        ("row 7", "every side is missing")
    ]


def test_a_file_that_is_no_text_is_a_missing_side(tmp_path: Path) -> None:
    rows = ["picture,words"]
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_bytes(b"\0\1\2" if number == 2 else f"this is picture {number}".encode())
        rows.append(f"{number}.png,{number}.txt")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    _, dataset = opened(tmp_path / "pairs.csv")
    assert dataset.there().tolist() == [[True, number != 2] for number in range(6)]


@pytest.mark.parametrize("make", [list, tuple, pd.Series, lambda texts: np.array(texts, dtype=object), pa.array])
def test_rows_without_a_caption_lack_it_whatever_holds_them(make: Callable[[list[Any]], Any]) -> None:
    texts = [f"this is picture {number}" for number in range(8)]
    texts[2], texts[5] = None, " "  # type: ignore[call-overload]
    pictures = np.random.default_rng(0).integers(0, 255, (8, 12, 12, 3), dtype=np.uint8)
    _, dataset = opened({"image": pictures, "text": make(texts)})
    assert dataset.there()[:, 1].tolist() == [number not in (2, 5) for number in range(8)]


@pytest.mark.parametrize("missing", [float("nan"), pd.NA])
def test_what_a_frame_has_for_nothing_is_a_missing_side(missing: Any) -> None:
    items = pd.Series([missing if number == 3 else picture(number) for number in range(6)], dtype=object)
    texts = pd.Series([missing if number == 1 else f"this is picture {number}" for number in range(6)], dtype="string")
    _, dataset = opened({"image": items, "text": texts})
    assert dataset.there().tolist() == [[number != 3, number != 1] for number in range(6)]


def test_every_mp3_is_sound() -> None:
    for start in (b"\xff\xfb\x90\x00", b"\xff\xf3\x90\x00", b"\xff\xe3\x18\xc4", b"ID3", b"FORM\0\0\0\0AIFF"):
        assert sniff(start + bytes(8)) == "audio"
