"""Bad input, as a new user would give it: one sentence, exit code 2, nothing lost and nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelfree.cli import main
from labelfree.training.plan import recognise

Capture = pytest.CaptureFixture[str]
ENCODERS = {"image": "timm:test_resnet", "series": "dilated:tiny", "text": "nano"}


def quick(kind: str) -> list[str]:
    method = {"image": "simclr", "series": "ts2vec", "text": "bert"}[kind]
    return ["--modality", kind, "--method", method, "--encoder", ENCODERS[kind], "--steps", "2", "threads=1"]


def refused(capsys: Capture, *words: object) -> str:
    """The one line that a command which has to be refused prints, besides what it had found until then."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert line.endswith((".", "?", "`", "/", ")", "]")) or "--" in line
    return line


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- good sources, to be spoilt


def picture(tone: float, number: int) -> Image.Image:
    noise = np.random.default_rng(number).normal(tone, 40, (12, 12, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def image_source(folder: Path) -> Path:
    for kind, tone in (("dark", 60), ("light", 180)):
        (folder / kind).mkdir(parents=True)
        for number in range(12):
            picture(tone, number).save(folder / kind / f"{number}.png")
    return folder


def series_source(folder: Path) -> Path:
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).normal(size=(24, 20, 2)).cumsum(axis=1).astype(np.float32)
    np.savez(folder / "series.npz", series=values, kind=np.array(["up", "down"] * 12))
    return folder / "series.npz"


def text_source(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = [
        f'"The {w} number {i} is in the {w} house, and it is {i}.",{w}' for i in range(30) for w in ("red", "blue")
    ]
    (folder / "texts.csv").write_text("text,colour\n" + "\n".join(lines) + "\n")
    return folder / "texts.csv"


SOURCES: dict[str, Callable[[Path], Path]] = {"image": image_source, "series": series_source, "text": text_source}
LABELS = {"image": "folder", "series": "kind", "text": "colour"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp("good") / kind) for kind, make in SOURCES.items()}


@pytest.fixture(scope="module")
def runs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small run of each kind of data."""
    found = {}
    for kind, source in sources.items():
        found[kind] = tmp_path_factory.mktemp("runs") / kind
        assert main(["pretrain", str(source), "--out", str(found[kind]), *quick(kind), "batch_size=8"]) == 0
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


# ---- sources


@pytest.mark.parametrize("kind", SOURCES)
def test_no_such_path(kind: str, out: Path, capsys: Capture) -> None:
    line = refused(capsys, "pretrain", "no/such/place", "--out", out, *quick(kind))
    assert "'no/such/place'" in line
    assert not out.exists()


def test_no_such_path_where_the_kind_is_to_be_guessed(out: Path, capsys: Capture) -> None:
    line = refused(capsys, "pretrain", "no/such/place", "--out", out, "--steps", 1)
    assert "There is nothing at 'no/such/place'" in line


CALLED = {"image": "pictures", "series": "series", "text": "text"}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_empty_folder(kind: str, tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(capsys, "pretrain", tmp_path / "empty", "--out", out, *quick(kind))
    assert f"'{tmp_path / 'empty'}' holds no {CALLED[kind]}" in line
    assert not out.exists()


@pytest.mark.parametrize(("kind", "name"), [("image", "x.npy"), ("series", "x.csv"), ("text", "x.txt")])
def test_an_empty_file(kind: str, name: str, tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / name).touch()
    refused(capsys, "pretrain", tmp_path / name, "--out", out, *quick(kind))
    assert not out.exists()


ONE = {"image": np.zeros((1, 8, 8), np.uint8), "series": np.arange(40, dtype=np.float32)[None]}
CONSTANT = {"image": np.full((9, 8, 8), 7, np.uint8), "series": np.full((9, 12), 2.5, np.float32)}


@pytest.mark.parametrize("kind", ["image", "series"])
def test_one_sample(kind: str, tmp_path: Path, out: Path, capsys: Capture) -> None:
    np.save(tmp_path / "one.npy", ONE[kind])
    line = refused(capsys, "pretrain", tmp_path / "one.npy", "--out", out, *quick(kind))
    assert "at least two" in line
    assert not out.exists()


def test_one_text(tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "one.csv").write_text("text\nhello there\n")
    assert "more than one text" in refused(capsys, "pretrain", tmp_path / "one.csv", "--out", out, *quick("text"))
    assert not out.exists()


@pytest.mark.parametrize("kind", ["image", "series"])
def test_constant_data(kind: str, tmp_path: Path, out: Path, capsys: Capture) -> None:
    np.save(tmp_path / "flat.npy", CONSTANT[kind])
    line = refused(capsys, "pretrain", tmp_path / "flat.npy", "--out", out, *quick(kind))
    assert "constant" in line or "same" in line
    assert not out.exists()


def test_constant_texts(tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "same.csv").write_text("text\n" + "all work and no play\n" * 40)
    line = refused(capsys, "pretrain", tmp_path / "same.csv", "--out", out, *quick("text"))
    assert "same" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "other"), [("image", "text"), ("series", "image"), ("series", "text"), ("text", "image")]
)
def test_a_source_of_another_kind(kind: str, other: str, sources: dict[str, Path], out: Path, capsys: Capture) -> None:
    refused(capsys, "pretrain", sources[other], "--out", out, *quick(kind))
    assert not out.exists()


def test_an_empty_folder_where_the_kind_is_to_be_guessed(tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "none" / "inner").mkdir(parents=True)
    line = refused(capsys, "pretrain", tmp_path / "none", "--out", out)
    assert "without files" in line


def test_mixed_kinds_have_to_be_named(tmp_path: Path, out: Path, capsys: Capture) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((16, 16), 40 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("one note among many pictures is no matter")
    assert recognise(folder)[0] == "image"
    for number in range(3):
        (folder / f"words-{number}.txt").write_text(f"words of no picture {number}")
    line = refused(capsys, "pretrain", folder, "--out", out)
    assert "6 of image and 4 of text" in line
    assert "--modality image" in line
    assert not out.exists()


def test_texts_in_a_folder_are_not_taken_for_names_of_files(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "{number} {"a word and another " * 20}"}}\n' for number in range(8))
    (tmp_path / "texts.jsonl").write_text(rows)
    assert recognise(tmp_path)[0] == "text"


def test_a_source_of_no_known_kind(tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "tool.exe").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "table.json").write_text("{not a table")
    line = refused(capsys, "pretrain", tmp_path / "table.json", "--out", out, "--steps", 1)
    assert "table.json' cannot be read as json" in line
    quick_ones = ("--steps", 1, "--encoder", "nano", "threads=1")
    assert main([str(word) for word in ("pretrain", tmp_path / "tool.exe", "--out", out, *quick_ones)]) == 0
    said = capsys.readouterr().err
    assert "Found 1 sample of bytes data" in said
    assert "nothing else fits 1 file(s): they are read as bytes" in said


@pytest.mark.parametrize(("name", "what"), [("note.png", "a picture"), ("note.wav", "a recording")])
def test_a_file_that_is_not_what_its_name_says(
    name: str, what: str, tmp_path: Path, out: Path, capsys: Capture
) -> None:
    (tmp_path / name).write_text("hello")
    line = refused(capsys, "pretrain", tmp_path / name, "--out", out, "--steps", 1)
    assert f"named like {what}, but cannot be read as one: " in line


@pytest.mark.parametrize(("rows", "words"), [("", "has no rows"), (",\n,\n", "all its columns are empty")])
def test_a_table_that_holds_nothing(rows: str, words: str, tmp_path: Path, out: Path, capsys: Capture) -> None:
    (tmp_path / "table.csv").write_text(f"a,b\n{rows}")
    assert words in refused(capsys, "pretrain", tmp_path / "table.csv", "--out", out, "--steps", 1)


def test_a_truncated_array(tmp_path: Path, out: Path, capsys: Capture) -> None:
    np.save(tmp_path / "cut.npy", np.zeros((50, 8, 8), np.uint8))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    assert "cut.npy" in refused(capsys, "pretrain", tmp_path / "cut.npy", "--out", out, *quick("image"))


def spoil(folder: Path, count: int) -> Path:
    """Pictures of which `count` are truncated."""
    image_source(folder)
    for number in range(count):
        path = folder / "dark" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:60])
    return folder


def test_too_many_truncated_pictures(tmp_path: Path, out: Path, capsys: Capture) -> None:
    line = refused(capsys, "pretrain", spoil(tmp_path / "photos", 6), "--out", out, *quick("image"), "batch_size=8")
    assert "max_unreadable" in line
    assert not out.exists()


def test_a_few_truncated_pictures_are_left_out_and_listed(tmp_path: Path, out: Path) -> None:
    source = spoil(tmp_path / "photos", 2)
    words = ["pretrain", source, "--out", out, *quick("image"), "batch_size=8", "max_unreadable=0.2"]
    assert main([str(word) for word in words]) == 0
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(entry["name"]).name for entry in listed] == ["0.png", "1.png"]
    assert all(entry["reason"] for entry in listed)


# ---- names and places


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["batchsize=8"], "Did you mean 'batch_size'"),
        (["batch_size=0"], "batch_size"),
        (["batch_size=many"], "'many'"),
        (["temprature=1"], "Did you mean 'temperature'"),
        (["sise=8"], "Did you mean 'size'"),
        (["augment=Q"], "augment"),
        (["devices=0"], "devices"),
        (["--time-limit", "soon"], "'soon' is not a length of time"),
        (["--time-limit", "0s"], "no time"),
        (["--epochs", "0"], "epochs=0"),
        (["--epochs", "1", "--steps", "2"], "epochs and steps"),
        (["--method", "simcrl"], "Did you mean 'simclr'"),
        (["--method", "gpt"], "is for text"),
        (["--method", "ts2vec"], "needs more"),
        (["--encoder", "timm:resnet81"], "resnet"),
        (["--encoder", "transformer:huge"], "nano, tiny, small, base"),
        (["--encoder", "dilated"], "for series"),
        (["--modality", "imagery"], "Did you mean 'image'"),
        (["--init", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_name_or_value(
    words: list[str], expected: str, sources: dict[str, Path], out: Path, capsys: Capture
) -> None:
    length = [] if {"--time-limit", "--epochs"} & set(words) else ["--steps", "1"]
    defaults = {"--modality": "image", "--method": "simclr", "--encoder": "timm:test_resnet"}
    options = [part for key, value in defaults.items() if key not in words for part in (key, value)]
    assert expected in refused(capsys, "pretrain", sources["image"], "--out", out, *options, *length, *words)
    assert not out.exists()


def test_an_existing_run_is_not_touched(runs: dict[str, Path], sources: dict[str, Path], capsys: Capture) -> None:
    before = content(runs["image"])
    line = refused(capsys, "pretrain", sources["image"], "--out", runs["image"], *quick("image"))
    assert str(runs["image"]) in line
    assert "--resume" in line
    assert content(runs["image"]) == before


@pytest.mark.parametrize("verb", ["evaluate", "finetune", "embed", "report", "resume"])
def test_no_such_run(verb: str, sources: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    source, label = sources["image"], ["--label", "folder"]
    words = {
        "evaluate": ["evaluate", "no-run", "--train", source, *label],
        "finetune": ["finetune", "no-run", "--train", source, *label, "--out", tmp_path / "model"],
        "embed": ["embed", "no-run", source, "--out", tmp_path / "x.parquet"],
        "report": ["report", "no-run"],
        "resume": ["pretrain", "--resume", "no-run"],
    }
    assert "'no-run'" in refused(capsys, *words[verb])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: Capture) -> None:
    assert "run.json" in refused(capsys, "report", tmp_path)


def test_no_such_model(sources: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    assert "'no-model'" in refused(capsys, "predict", "no-model", sources["image"], "--out", tmp_path / "a.csv")


# ---- labels


@pytest.mark.parametrize("kind", SOURCES)
def test_a_missing_label_column_names_those_there_are(
    kind: str, sources: dict[str, Path], runs: dict[str, Path], capsys: Capture
) -> None:
    line = refused(capsys, "evaluate", runs[kind], "--train", sources[kind], "--label", LABELS[kind][:-1] + "x")
    assert LABELS[kind] in line


def test_a_class_with_one_label(runs: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    source = image_source(tmp_path / "photos")
    (source / "odd").mkdir()
    picture(120, 99).save(source / "odd" / "only.png")
    line = refused(capsys, "evaluate", runs["image"], "--train", source, "--label", "folder", "--protocols", "knn")
    assert "'odd'" in line


def test_one_class(runs: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    source = image_source(tmp_path / "photos")
    shutil.rmtree(source / "light")
    line = refused(capsys, "evaluate", runs["image"], "--train", source, "--label", "folder", "--protocols", "knn")
    assert "class" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--protocols", "knm"], "Did you mean 'knn'"),
        (["--budgets", "lots"], "'lots'"),
        (["--budgets", "200%"], "200%"),
        (["--seeds", "0"], "seed"),
        (["--seed", "-1"], "seed=-1 is no whole number"),
        (["--metric", "acuracy"], "accuracy"),
        (["--group", "patient"], "'patient'"),
    ],
)
def test_a_wrong_option_of_evaluate(
    words: list[str], expected: str, runs: dict[str, Path], sources: dict[str, Path], capsys: Capture
) -> None:
    found = refused(capsys, "evaluate", runs["image"], "--train", sources["image"], "--label", "folder", *words)
    assert expected in found


# ---- files that were harmed, and machines that are full


@pytest.mark.parametrize("harm", ["cut", "altered", "missing", "config"])
def test_an_encoder_that_was_harmed_is_refused(
    harm: str, runs: dict[str, Path], sources: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["image"], run)
    weights = run / "encoder" / "model.safetensors"
    whole = weights.read_bytes()
    if harm == "cut":
        weights.write_bytes(whole[:-100])
    elif harm == "altered":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif harm == "missing":
        weights.unlink()
    else:
        (run / "encoder" / "config.json").write_text('{"format": 1,')
    line = refused(capsys, "embed", run, sources["image"], "--out", tmp_path / "x.parquet")
    assert str(run / "encoder") in line
    assert not (tmp_path / "x.parquet").exists()


def test_a_full_disk_is_named_and_nothing_is_lost(
    sources: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 100_000:  # room for a few words, as there mostly is
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        line = refused(
            capsys, "pretrain", sources["image"], "--out", out, *quick("image"), "batch_size=8", "checkpoint_every=1"
        )
    assert "No space left on device" in line or "disk is full" in line
    assert json.loads((out / "run.json").read_text())["state"] == "failed"
    assert list(out.rglob("*.part")) == []
    assert main(["pretrain", "--resume", str(out)]) == 0


def test_in_a_process_of_its_own_there_is_no_traceback_either(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "labelfree", "pretrain", "no/such/place", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_of_files_that_are_no_text_end_no_training(tmp_path: Path, capsys: Capture) -> None:
    source, run, out = Path(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9")), tmp_path / "run", tmp_path / "out.csv"
    try:
        image_source(source)
    except OSError:
        pytest.skip("this file system knows no such names")
    os.rename(source / "dark", os.fsencode(source / "dark") + b"\xe9")
    Path(os.fsdecode(bytes(source / "light" / "broken") + b"\xe9.png")).write_bytes(b"no picture")
    assert main(["pretrain", str(source), "--out", str(run), *quick("image")]) == 0
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["source"] == str(source)
    assert json.loads((run / "quarantine.jsonl").read_text(encoding="utf-8"))["name"] == r"light/broken\xe9.png"
    assert main(["report", str(run)]) == main(["embed", str(run), str(source), "--out", str(out), "--json"]) == 0
    assert r"dark\xe9/0.png" in out.read_text(encoding="utf-8")
