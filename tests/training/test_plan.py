"""What is chosen, and what is refused, before training."""

import numpy as np
import pytest

import labelfree
from labelfree.errors import LabelfreeError
from labelfree.training.plan import parse_duration
from labelfree.training.pretrain import _place

SMALL = {"size": 16, "precision": "32", "threads": 1, "batch_size": 8}


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "pictures.npy"
    np.save(path, generator.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("words", "seconds"), [("90", 90), ("45s", 45), ("10m", 600), ("1h30m", 5400), (7.5, 7.5), ("2 h", 7200)]
)
def test_durations(words, seconds):
    assert parse_duration(words) == seconds


@pytest.mark.parametrize("words", ["", "ten", "5 parsecs", "0s", "-3m", "10m!"])
def test_what_is_not_a_duration(words):
    with pytest.raises(LabelfreeError, match="time"):
        parse_duration(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "simclear"}, "simclr"),
        ({"encoder": "timmm:resnet18"}, "timm"),
        ({"modality": "picture"}, "There is no modality 'picture'"),
        ({"batch_sise": 4}, "batch_size"),
        ({"batch_size": "many"}, "batch_size"),
        ({"epochs": 1, "steps": 1}, "epochs and steps"),
        ({"epochs": 0}, "epochs=0"),
        ({"optimizer": "adam"}, "adamw"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(pictures, tmp_path, options, words):
    out = tmp_path / "run"
    options = {"steps": 1} | options if "epochs" not in options else options
    with pytest.raises(LabelfreeError, match=words):
        labelfree.pretrain(str(pictures), out=out, **{**SMALL, **options})
    assert not out.exists()


def test_a_folder_that_exists_is_left_alone(pictures, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(LabelfreeError, match="exists already"):
        labelfree.pretrain(str(pictures), out=out, steps=1, **SMALL)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_every_choice_is_written_down_with_its_reason(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", steps=2, size=16, encoder="timm:test_resnet", precision="32", threads=1
    )
    chosen = {choice["key"]: choice for choice in run.info["choices"]}
    assert {"modality", "method", "batch_size", "cache"} <= set(chosen)
    assert all(choice["reason"] for choice in chosen.values())
    assert run.info["settings"]["training"]["batch_size"] == chosen["batch_size"]["value"]
    settings = run.info["settings"]["training"].values()
    assert "auto" not in settings


def test_a_time_limit_becomes_steps(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", time_limit=2, encoder="timm:test_resnet", method="simclr", **SMALL
    )
    assert run.state == "finished"
    assert run.info["steps"] == run.info["step"] >= 1


def test_a_batch_larger_than_the_source_is_cut(pictures, tmp_path):
    run = labelfree.pretrain(
        str(pictures), out=tmp_path / "run", steps=1, encoder="timm:test_resnet", **{**SMALL, "batch_size": 4096}
    )
    assert run.info["settings"]["training"]["batch_size"] == 24


def test_a_password_is_not_written_into_a_run() -> None:
    assert _place("postgresql://me:secret@host/shop") is None
    assert _place("sqlite:///shop.db") == "sqlite:///shop.db"
