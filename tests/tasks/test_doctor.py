"""The doctor names what is wrong with data, and says when it is too much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
from cells import SOURCES, VIEWS
from PIL import Image

import labelfree
from labelfree.cli import main
from labelfree.data.cache import Cached
from labelfree.data.doctor import quick
from labelfree.errors import LabelfreeError
from labelfree.modalities.image import Image as Pictures
from labelfree.tasks.doctor import OUTLYING, Checkup, doctor, outlyingness


def noise(count: int, seed: int = 0, side: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, side, side, 3), dtype=np.uint8)


def found(checkup: Checkup) -> dict[str, list[int]]:
    return {finding.check: list(finding.samples) for finding in checkup.findings}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures, of which: 3 is a copy of 2, 7 nearly 6, 10 and 11 of one colour; one more is no picture."""
    folder = tmp_path_factory.mktemp("spoilt")
    pictures = noise(40)
    pictures[3] = pictures[2]
    pictures[7] = pictures[6]
    pictures[7, 0, 0] ^= 8
    pictures[10], pictures[11] = 5, 200
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    (folder / "99.png").write_bytes((folder / "00.png").read_bytes()[:40])
    rows = [f"{number:02}.png,{'cat' if number in (2, 6) else 'dog'}" for number in range(40)]
    (folder / "labels.csv").write_text("file,animal\n" + "\n".join(rows))
    return folder


def test_each_fault_is_found(spoilt: Path) -> None:
    checkup = doctor(spoilt, modality="image", label="animal")
    assert found(checkup) == {
        "unreadable": [40],
        "constant": [10, 11],
        "copies": [2, 3],
        "near copies": [6, 7],
        "labels disagree": [2, 3, 6, 7],
    }
    assert checkup.labels == {"cat": 2, "dog": 38}
    assert checkup.share == pytest.approx(7 / 41)
    assert checkup.failed
    assert not doctor(spoilt, modality="image", threshold=0.2).failed


def test_samples_of_another_source_are_found(spoilt: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "test.npy", np.concatenate([noise(5), noise(5, seed=1)]))
    shared = doctor(tmp_path / "test.npy", against=spoilt, modality="image")
    assert found(shared) == {"in both sources": [0, 1, 2, 4]}
    reasons = shared.findings[0].reasons
    assert reasons[2] == "is '02.png' of the other source"


def test_whole_data_pass(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", noise(30))
    checkup = doctor(tmp_path / "good.npy")
    assert (found(checkup), checkup.failed) == ({}, False)
    assert checkup.verdict == "Nothing is wrong with the 30 samples looked at."


def test_a_limit_looks_at_some(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", noise(30))
    assert doctor(tmp_path / "good.npy", limit=10).looked == 10
    with pytest.raises(LabelfreeError, match="limit=0"):
        doctor(tmp_path / "good.npy", limit=0)


def test_missing_values_are_counted_by_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    lines = [f"{a:.4f},{'' if row % 4 == 0 else f'{b:.4f}'}" for row, (a, b) in enumerate(values)]
    (tmp_path / "sensors.csv").write_text("heat,light\n" + "\n".join(lines))
    checkup = doctor(tmp_path / "sensors.csv", modality="series", window=20)
    assert checkup.missing == {"light": 0.25}


def test_series_of_a_wrong_length_and_faint_ones_are_found() -> None:
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(40, 1)).cumsum(axis=0).astype(np.float32) for _ in range(20)]
    series[4] = np.concatenate([series[4]] * 15)
    series[9] = series[9] * 1e-3 + 5
    checkup = doctor(series, modality="series", window=0)
    assert found(checkup) == {"of unusual size": [4], "nearly constant": [9]}
    assert checkup.findings[1].reasons[4] == "is 600 long, usual is 40"


def test_lengths_of_recordings_are_told_in_seconds() -> None:
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=1600).astype(np.float32) for _ in range(12)]
    waves[3] = np.tile(waves[3], 20)
    for given in ("mel", "wave"):
        checkup = doctor(waves, modality="audio", rate=16000, input=given)
        assert next(f for f in checkup.findings if f.check == "of unusual size").reasons[3].startswith("is 2.0 s long")


def test_texts_that_differ_by_a_word_are_near_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(rng.choice(words, 80)) for _ in range(20)]
    texts[5] = texts[4] + " more"
    texts[8] = texts[7]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    checkup = doctor(tmp_path / "texts.txt", modality="text", vocabulary=300)
    assert found(checkup) == {"copies": [7, 8], "near copies": [4, 5]}


@pytest.mark.parametrize("text", [["the same words"] * 5, ["one text"]])
def test_texts_that_teach_nothing_can_be_looked_at(text: list[str]) -> None:
    checkup = doctor(text, modality="text")
    assert found(checkup) == ({"copies": [0, 1, 2, 3, 4]} if len(text) > 1 else {})
    assert "could not be learnt from" in checkup.notes[0]


def test_rows_of_few_numbers_are_no_near_copies(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 4))
    path = tmp_path / "flowers.csv"
    path.write_text("a,b,c,d\n" + "\n".join(",".join(f"{value:.4f}" for value in row) for row in values))
    checkup = doctor(path, modality="table")
    assert (found(checkup), checkup.failed) == ({}, False)
    assert "in 4 raw features, samples are near by chance" in " ".join(checkup.notes)


def test_rows_that_are_nearly_alike_are_told_and_are_no_fault() -> None:
    values = np.random.default_rng(0).normal(size=(60, 12))
    values[1::2] = values[::2] + 1e-4
    table = {f"v{place}": column for place, column in enumerate(values.T)} | {"kind": np.array(["a", "b"] * 30)}
    checkup = doctor(table, modality="table", label="kind", against={**table, "v0": table["v0"] + 1e-4})
    assert [(finding.check, finding.fault) for finding in checkup.findings] == [
        ("near copies", False),
        ("near the other", False),
    ]
    assert (checkup.share, checkup.failed) == (0, False)
    assert "Nothing is wrong" in checkup.verdict
    assert "counts as no fault" in " ".join(checkup.notes)
    same = {name: np.concatenate([column[:4], column[:1]]) for name, column in table.items()}
    same["kind"][4] = "b"
    checkup = doctor(same, modality="table", label="kind", against=same)
    assert {f.check: list(f.samples) for f in checkup.faults} == {
        "copies": [0, 4],
        "in both sources": [0, 1, 2, 3, 4],
        "labels disagree": [0, 4],
    }


def test_what_was_looked_for_in_some_samples_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = noise(40).repeat(2, axis=0)
    pictures[1::2, 0, 0] ^= 8
    monkeypatch.setattr("labelfree.tasks.doctor.MOST_COMPARED", 79)
    checkup = doctor(pictures, modality="image")
    [near] = checkup.findings
    assert len(near.samples) == 78
    assert [checkup.share, checkup.share_of(near)] == pytest.approx([78 / 79, 78 / 79])


@pytest.mark.parametrize("given", [{"near": -1.0}, {"threshold": -3.0}, {"near": float("nan")}])
def test_shares_are_shares(given: dict[str, float]) -> None:
    with pytest.raises(LabelfreeError, match=r"is no share.*from 0 to 1"):
        doctor(noise(5), **given)  # type: ignore[arg-type]


def test_neighbouring_clips_of_a_film_are_no_copies() -> None:
    films = np.repeat(noise(6, side=16)[:, None], 8, axis=1)
    films[5] = films[4]
    films[5, :, 0, 0] ^= 8
    checkup = doctor(films, frames=2, span=4, stride=2, size=8)
    by_check = {finding.check: finding.groups for finding in checkup.findings}
    assert len(by_check["copies"]) == 6, "still films: all clips of one are alike"
    assert [len(group) for group in by_check["near copies"]] == [2]


def test_outliers_of_a_run_are_found(tmp_path: Path) -> None:
    source = runs.save(tmp_path / "data.npz", 60, seed=0)
    run = runs.make_run(tmp_path / "run", source)
    pictures, _ = runs.pictures(60)
    pictures[17] = 255
    checkup = doctor(pictures, run=run)
    assert found(checkup)["outliers"] == [17]
    with pytest.raises(LabelfreeError, match="The run says how its data is read"):
        doctor(pictures, run=run, modality="image")


def test_what_most_samples_share_makes_no_outliers_of_the_others() -> None:
    rng = np.random.default_rng(0)
    alike, others = np.repeat(rng.normal(size=(1, 8)), 60, axis=0), rng.normal(size=(30, 8))
    assert outlyingness(np.vstack([alike, others])).max() < OUTLYING
    corners = np.eye(8)[np.arange(80) % 8] + 1e-3 * rng.normal(size=(80, 8))
    assert outlyingness(np.repeat(np.eye(8), 10, axis=0)).max() == 0, "one distance for all"
    far = np.vstack([corners, -np.ones((2, 8))])
    assert np.flatnonzero(outlyingness(far) > OUTLYING).tolist() == [80, 81], "equal rows are no neighbours"


def test_page_json_and_exit_code(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    words = ["doctor", str(spoilt), "--modality", "image", "--label", "animal", "--out", str(page), "--json"]
    assert main(words) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == json.loads(page.with_suffix(".json").read_text())
    assert [(f["check"], f["count"]) for f in answer["findings"]][:3] == [
        ("unreadable", 1),
        ("constant", 2),
        ("copies", 2),
    ]
    html = page.read_text()
    assert "02.png" in html
    assert "data:image/png;base64" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert main(words[:-1]) == 2, "nothing is overwritten"
    assert "--force" in capsys.readouterr().err
    page.unlink()
    assert main(words[:-1]) == 2, "nor is the JSON beside it"
    assert main(["doctor", str(spoilt), "--modality", "image", "--threshold", "0.5"]) == 0
    assert "no more than the 50% that is allowed" in capsys.readouterr().out


def test_pretraining_takes_a_quick_look_first(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelfree.pretrain(
        spoilt,
        modality="image",
        method="simclr",
        encoder="timm:test_resnet",
        steps=1,
        size=8,
        threads=1,
        out=tmp_path / "r",
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "Of 40 samples looked at: 2 constant, 2 copies." in said
    assert "`labelfree doctor SOURCE`" in said


def test_a_quick_look_at_what_is_in_memory_finds_the_same(spoilt: Path) -> None:
    data = Pictures()
    opened = data.open(spoilt)
    read, _ = quick(opened, data)
    remembered, looked = quick(Cached(opened, data), data)
    assert looked == 40
    assert [(f.check, list(f.samples)) for f in read if f.check != "unreadable"] == [
        (f.check, list(f.samples)) for f in remembered
    ]


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_every_kind_of_data_can_be_looked_at(kind: str, tmp_path: Path) -> None:
    checkup = doctor(SOURCES[kind](tmp_path), modality=kind, **VIEWS.get(kind, {}))
    assert (checkup.modality, checkup.looked) == (kind, checkup.count)
    checkup.write(tmp_path / "page.html")
    answer = json.loads((tmp_path / "page.json").read_text())
    assert answer["verdict"] in (tmp_path / "page.html").read_text()


def payments(path: Path, rows: int = 300, gaps: int = 0) -> Path:
    """Events without gaps but those of the amount that are asked for."""
    rng = np.random.default_rng(0)
    lines = [
        f"{60 * row},{rng.integers(0, 40)},{100 + rng.integers(0, 40)},{rng.exponential(20):.2f},{rng.integers(0, 2)}"
        for row in range(rows)
    ]
    for row in range(gaps):
        time, source, target, _, fraud = lines[3 * row].split(",")
        lines[3 * row] = f"{time},{source},{target},,{fraud}"
    path.write_text("time,source,target,amount,is_fraud\n" + "\n".join(lines))
    return path


def test_short_histories_of_events_are_no_missing_values(tmp_path: Path) -> None:
    assert doctor(payments(tmp_path / "whole.csv"), modality="events").missing == {}
    assert doctor(payments(tmp_path / "gaps.csv", gaps=30), modality="events").missing == {"amount": 0.1}


@pytest.mark.parametrize(("kind", "suffix"), [("text", "txt"), ("bytes", "bin")])
def test_files_that_hold_nothing_are_empty_and_nothing_else(kind: str, suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        (tmp_path / f"{number}.{suffix}").write_text(" ".join(rng.choice([f"word{n}" for n in range(90)], 60)))
    for name in ("empty", "void"):
        (tmp_path / f"{name}.{suffix}").write_text("  \n" if kind == "text" and name == "void" else "")
    checkup = doctor(tmp_path, modality=kind)
    assert found(checkup) == {"empty": [8, 9]}
    unit = "characters" if kind == "text" else "bytes"
    assert unit in checkup.facts
    assert checkup.facts["typical length"].endswith(unit)


def test_a_label_among_the_features_is_left_out_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'yes' if a > 0 else 'no'}" for a, b in rng.normal(size=(60, 2))]
    rows[9] = rows[8].replace("yes", "?").replace("no", "yes").replace("?", "no")
    path = tmp_path / "people.csv"
    path.write_text("height,weight,income\n" + "\n".join(rows))
    checkup = doctor(path, modality="table", label="income", against=path)
    assert found(checkup)["labels disagree"] == [8, 9]
    assert "'income' is the label" in checkup.notes[0]
    events = doctor(payments(tmp_path / "paid.csv"), modality="events", label="is_fraud", exclude="amount")
    assert set(events.labels) == {"0", "1"}


def test_a_wrong_label_is_told_before_the_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    def survey(*_: object) -> None:
        raise AssertionError("the source was read")

    monkeypatch.setattr("labelfree.tasks.doctor.nearby", survey)
    with pytest.raises(LabelfreeError, match=r"no column 'knid'.*Did you mean 'kind'"):
        doctor({"images": noise(8), "kind": np.arange(8) % 2}, modality="image", label="knid")


def test_labels_of_one_class_are_noted_beside_what_is_found() -> None:
    checkup = doctor(
        {"images": noise(8).repeat(2, axis=0), "kind": np.array(["a"] * 16)}, modality="image", label="kind"
    )
    assert list(found(checkup)) == ["copies"]
    assert checkup.labels == {"a": 16}
    assert "'kind' has only 'a': no class can be told from another." in checkup.notes


def test_the_table_tells_exact_copies_in_the_other_source_from_near_ones(tmp_path: Path) -> None:
    theirs = noise(40)
    np.save(tmp_path / "theirs.npy", theirs)
    ours = noise(20, seed=1)
    ours[:3] = theirs[:3]
    ours[0, 0, 0] ^= 8
    [row] = doctor(ours, modality="image", against=tmp_path / "theirs.npy").rows()
    assert row[:2] == ("in both sources", "3")
    assert row[3].startswith("2 exactly, 1 nearly: row 0; row 1")


def test_the_source_is_not_replaced_by_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.json"
    source.write_text("".join(json.dumps({"a": i, "b": i * i % 7}) + "\n" for i in range(20)))
    before = source.read_text()
    for force in ([], ["--force"]):
        assert main(["doctor", str(source), "--modality", "table", "--out", str(tmp_path / "rows.html"), *force]) == 2
    assert "is the source" in capsys.readouterr().err
    assert source.read_text() == before
