"""The folder of a run while it comes into being: nobody else's, and true about what happened."""

import errno
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import labelfree
from labelfree.data.batch import Unreadable
from labelfree.errors import LabelfreeError
from labelfree.files import read_json_lines
from labelfree.modalities.image import Image as Pictures
from labelfree.training import job as jobs
from labelfree.training.folder import held, new_folder
from labelfree.training.recorder import write_quarantine
from labelfree.training.settings import TrainSettings

TINY = {"encoder": "timm:test_resnet", "method": "simclr", "size": 8, "threads": 1, "projector": (32, 16)}
TINY |= {"batch_size": 8, "precision": "32"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.random.default_rng(0)
    for number in range(32):
        Image.fromarray(values.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder


def test_runs_that_start_together_take_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(None, "photos") as one, new_folder(None, "photos") as other:
        assert [str(folder) for folder in (one, other)] == ["runs/photos", "runs/photos-2"]


def test_a_folder_that_another_run_took_meanwhile_is_left_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = jobs.try_steps

    def slowly(*given: object) -> float:
        (tmp_path / "run" / "run.json").write_text("of another")
        return tried(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "try_steps", slowly)
    with pytest.raises(LabelfreeError, match="exists already"):
        labelfree.pretrain(photos, out=tmp_path / "run", steps=1, **TINY)
    assert (tmp_path / "run" / "run.json").read_text() == "of another"


def test_a_run_inside_its_own_source_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(4, 64, 2)).cumsum(1)
    for number, rows in enumerate(values):
        np.savetxt(tmp_path / f"{number}.csv", rows, delimiter=",", header="a,b", comments="")
    monkeypatch.chdir(tmp_path)
    tiny = {"modality": "series", "method": "simclr", "encoder": "transformer:pico", "window": 32, "threads": 1}
    first = labelfree.pretrain(".", steps=1, **tiny)
    (first.path / "run.json").write_text(json.dumps({**first.info, "state": "stopped"}))
    assert labelfree.pretrain(resume=first.path).state == "finished"
    second = labelfree.pretrain(".", steps=1, **tiny)
    assert second.info["fingerprint"] == first.info["fingerprint"]


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(LabelfreeError, match=rf"being trained by process {os.getpid()} on \S+\. Wait"),
        held(tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir()), "nothing of it stays"
    (tmp_path / ".lock").write_text("process 1 on a machine that lost its power")
    with held(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_what_is_forked_from_a_process_does_not_hold_its_folder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with held(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent lets it go
            os._exit(0)
    with held(tmp_path):
        os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)


def test_what_is_unreadable_is_met_again_in_each_pass_and_kept_once() -> None:
    job = jobs.Job(SimpleNamespace(training=TrainSettings()), None, range(100_000), None)  # type: ignore[arg-type]
    for _ in range(3):
        job._set_aside([Unreadable(np.int64(7), "7.png", "cut"), Unreadable(8, "8.png", "cut")], 100_000)
    assert sorted(item.name for item in job.quarantine.values()) == ["7.png", "8.png"]


def test_what_was_left_out_at_the_opening_does_not_count_among_what_is_streamed() -> None:
    left_out = jobs.by_name(Unreadable(number, f"{number}.png", "cut") for number in range(400))
    plan = SimpleNamespace(training=TrainSettings())
    job = jobs.Job(plan, None, range(100_000), None, left_out)  # type: ignore[arg-type]
    job._set_aside([Unreadable(5000, "met.png", "cut")], 2000)
    assert len(job.quarantine) == 401
    with pytest.raises(LabelfreeError, match=r"^10\.0% of what was read so far .*: 'met.png': cut.* in a new run\.$"):
        job._set_aside([Unreadable(6000 + number, "x", "cut") for number in range(299)], 1000)


def test_a_run_that_finds_no_room_to_begin_can_be_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(LabelfreeError, match="No space left"):
            labelfree.pretrain(photos, out=tmp_path / "run", steps=1, **TINY)
    assert labelfree.pretrain(photos, out=tmp_path / "run", steps=1, **TINY).state == "finished"


def test_statistics_that_could_not_be_read_again_are_refused_before_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pictures, "state", lambda self: {"mean": [0.5, float("inf")]})
    with pytest.raises(LabelfreeError, match=r"too large: its statistics are not finite \(mean\.1\)\. Rescale"):
        labelfree.pretrain(photos, out=tmp_path / "run", steps=1, **TINY)
    assert not (tmp_path / "run").exists()


def test_a_stream_with_too_many_unreadable_samples_is_given_up(photos: Path, tmp_path: Path) -> None:
    for number in range(0, 32, 4):
        (photos / f"{number:02}.png").write_bytes(b"no picture")
    with pytest.raises(LabelfreeError, match=r"of what was read so far cannot be read.*max_unreadable=0.05"):
        labelfree.pretrain(photos, out=tmp_path / "run", epochs=3, cache="none", **TINY)
    run = labelfree.pretrain(photos, out=tmp_path / "other", epochs=3, cache="none", max_unreadable=0.3, **TINY)
    lines = (run.path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(0, 32, 4))


def test_what_was_found_before_a_training_was_resumed_stays_listed(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    write_quarantine(path, [Unreadable(3, "c.png", "cut"), Unreadable(3, "c.png", "cut")])
    write_quarantine(path, [Unreadable(1, "a\u2028\x85é.png", "empty")])
    write_quarantine(path, [])
    assert [line["name"] for line in read_json_lines(path)] == ["a\u2028\x85é.png", "c.png"]


def test_the_log_of_tensorboard_has_every_logged_step_and_is_closed(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    run = labelfree.pretrain(photos, out=tmp_path / "run", steps=3, log_every=1, tensorboard=True, **TINY)
    assert not [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard")]
    (file,) = (run.path / "tensorboard").glob("events*")
    values = [(event.step, value.tag) for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    assert [step for step, tag in values if tag == "loss"] == [1, 2, 3]


def test_a_run_that_failed_says_how_far_it_came(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = jobs.Training.step

    def broken(self: jobs.Training, number: int, batch: object) -> object:
        if number == 3 and self.steps == 5:
            raise LabelfreeError("The machine is on fire.", "Put it out.")
        return step(self, number, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs.Training, "step", broken)
    with pytest.raises(LabelfreeError, match="on fire"):
        labelfree.pretrain(photos, out=tmp_path / "run", steps=5, log_every=1, **TINY)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["state"], info["step"], info["samples"]) == ("failed", 3, 24)
    assert info["health"]["loss"] > 0
