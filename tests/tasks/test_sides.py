"""Zero-shot and retrieval: ranks are right, classes are named in words, and the verbs answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.csv
import pytest
import torch
from cells import pairs

import labelfree
from labelfree import runtime
from labelfree.cli import main
from labelfree.errors import LabelfreeError, Refusal
from labelfree.needs import Need
from labelfree.tasks.sides import Proportion, _by_chance, hits, ranks, sides_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> labelfree.Run:
    return labelfree.pretrain(
        source, modality="pair", encoder="towers:timm:test_resnet+nano", out=tmp_path_factory.mktemp("run") / "run",
        steps=60, batch_size=16, threads=1, width=32, learning_rate=3e-3,
        **{"image.size": 16, "text.length": 16},
    )  # fmt: skip


def test_ranks_count_what_is_nearer_and_what_is_as_near() -> None:
    q = np.eye(3, dtype=np.float32)
    k = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0.9, 0.1]], dtype=np.float32)
    assert [found.tolist() for found in ranks(q, k)] == [[0, 1, 0], [1, 1, 1], [1, 1, 1]]
    better, ties, _ = ranks(q, np.ones((3, 3), dtype=np.float32))
    assert (better.tolist(), ties.tolist()) == ([0, 0, 0], [3, 3, 3])
    assert hits(better, ties, 1) == pytest.approx(1 / 3), "one point for all is no find"
    assert hits(np.array([0, 2, 2]), np.array([1, 1, 2]), 3).tolist() == [1, 1, 0.5]


def test_captions_of_one_picture_find_it_and_are_each_found_by_it() -> None:
    pictures, captions = np.repeat(np.arange(4), 5), np.arange(20)
    q = np.eye(4, dtype=np.float32)[pictures]
    for given, count, own in (((pictures, captions), 4, 5), ((captions, pictures), 20, 1)):
        better, ties, found = ranks(q, q, *given)
        assert len(better) == count
        assert (hits(better, ties, 1) == 1).all(), "captions of one picture are as good as one another"
        assert (found == own).all()


def test_chance_counts_all_that_is_right() -> None:
    assert _by_chance(np.array([1, 1]), 10, 3) == pytest.approx(0.3)
    assert _by_chance(np.array([5]), 20, 1) == pytest.approx(0.25)
    assert _by_chance(np.array([2]), 4, 2) == pytest.approx(1 - 2 / 4 * 1 / 3)
    assert _by_chance(np.array([1]), 4, 10) == 1


def test_equal_sides_of_a_source_are_one(run: labelfree.Run, source: Path, tmp_path: Path) -> None:
    lines = source.read_text().splitlines()
    twice = source.parent / "twice.csv"
    twice.write_text("\n".join([*lines, *lines[1:9]]) + "\n")
    for once, both in zip(run.retrieve(source), run.retrieve(twice), strict=True):
        assert (both.keys, both.recall[1].count, both.chance) == (once.keys, once.recall[1].count, once.chance)
        assert both.recall[5].value == pytest.approx(once.recall[5].value, abs=0.05)


def test_share_has_an_interval_that_holds_it() -> None:
    share = Proportion.of(np.array([True] * 9 + [False]))
    assert (share.value, share.count) == (0.9, 10)
    assert share.low == pytest.approx(0.596, abs=1e-3)
    assert share.high == pytest.approx(0.982, abs=1e-3)


def test_missing_sides_have_no_vector(run: labelfree.Run, source: Path) -> None:
    sides = sides_of(run, run.open(source))
    assert np.isnan(sides["text"][5]).all()
    assert np.isnan(sides["image"][9]).all()
    assert np.linalg.norm(sides["image"][5]) == pytest.approx(1, abs=1e-4)


def test_sides_are_those_of_any_kind_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    joint = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    monkeypatch.setattr("labelfree.tasks.embed.embed", lambda *_, **__: joint)
    ours = SimpleNamespace(offers={Need.PAIR}, sides={"smell": None, "taste": None})
    sides = sides_of(SimpleNamespace(modality=ours, encoder=None), None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(sides["taste"], [[0, 1], [np.nan, np.nan]])


def test_sides_are_compared_where_it_is_told(run: labelfree.Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def device(word: str) -> torch.device:
        asked.append(word)
        return torch.device("cpu")

    monkeypatch.setattr(runtime, "checked_device", device)
    run.retrieve(source, accelerator="mps")
    run.zero_shot(source, "tone", accelerator="mps")
    assert set(asked) == {"mps"}


def test_a_place_below_the_first_is_refused(run: labelfree.Run, source: Path) -> None:
    with pytest.raises(LabelfreeError, match="at=0"):
        run.retrieve(source, at=[0])


def test_sides_find_each_other_better_than_chance(run: labelfree.Run, source: Path) -> None:
    for way in run.retrieve(source):
        assert way.recall[10].count == 56
        assert way.recall[10].low > way.chance[10]


def test_classes_are_named_in_words(run: labelfree.Run, source: Path, tmp_path: Path) -> None:
    found = run.zero_shot(source, "tone", prompts=["a {} square number 1 on the left", "a {} square on the right"])
    assert found.side == "image"
    assert found.classes == ("dark", "grey", "light")
    assert found.accuracy is not None
    assert found.accuracy.low > 1 / 3
    assert found.guess[9] == -1, "no picture, no name"
    found.write(tmp_path / "named.csv")
    table = pyarrow.csv.read_csv(tmp_path / "named.csv")
    assert table.column_names == ["name", "prediction", "similarity"]
    assert len(table) == 64


def test_samples_of_other_classes_than_those_given_are_counted(
    run: labelfree.Run, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, some = (run.zero_shot(source, "tone", classes=classes) for classes in ((), ("dark", "light")))
    assert whole.accuracy is not None
    assert some.accuracy is not None
    left = whole.accuracy.count - some.accuracy.count
    assert left > 10
    assert any("samples are of classes that are not among those known ('grey')" in note for note in some.notes)
    assert "('grey'); left out." in capsys.readouterr().err
    assert some.to_dict()["notes"] == some.notes


def test_verbs_answer_with_stable_keys(
    run: labelfree.Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The keys of docs/json.md."""

    def answer(*words: object) -> dict:
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert set(answer("zeroshot", run.path, source, "--label", "tone")) >= {"accuracy", "balanced_accuracy", "classes"}
    out = tmp_path / "named.parquet"
    named = answer("zeroshot", run.path, source.parent, "--classes", "dark,light", "--out", out)
    assert (named["accuracy"], named["count"]) == (None, 64)
    ways = answer("retrieve", run.path, source)["directions"]
    assert [(way["query"], way["key"]) for way in ways] == [("image", "text"), ("text", "image")]
    assert set(ways[0]["recall"]["5"]) == {"value", "low", "high", "count"}


def test_what_cannot_be_done_is_refused(run: labelfree.Run, source: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelfreeError, match="no place for a class"):
        run.zero_shot(source, "tone", prompts=["a square"])
    with pytest.raises(LabelfreeError, match="Two classes or more"):
        run.zero_shot(source, classes=["one"])
    assert main(["zeroshot", str(run.path), str(source)]) == 2
    lone = labelfree.pretrain(
        source.parent, modality="image", encoder="timm:test_resnet", out=tmp_path / "lone", steps=1, threads=1
    )
    with pytest.raises(Refusal, match="pairs are needed"):
        lone.retrieve(source.parent)
