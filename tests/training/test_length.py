"""A time limit becomes steps before training, and is reckoned anew on the way, since trial steps may have lied."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import labelfree
from labelfree.data.loader import Loader
from labelfree.training import job, length
from labelfree.training.length import Length
from labelfree.training.recorder import Recorder

TINY = {"encoder": "timm:test_resnet", "method": "simclr", "size": 8, "threads": 1, "projector": (32, 16)}
TINY |= {"batch_size": 16, "precision": "32", "warmup": 0.0}
#: Seconds that a step takes by the clock below, and that it seemed to take before training.
TAKES, SEEMED = 0.5, 0.7


class Clock:
    """Every step of a training takes `TAKES` seconds."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def monotonic(self):
        return self.now

    def time(self):
        raise AssertionError("somebody may set this clock")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    tick = Recorder._tick

    def step(self, done):
        clock.now += TAKES
        tick(self, done)

    monkeypatch.setattr(Recorder, "_tick", step)
    for name in ("length", "pretrain", "recorder"):
        monkeypatch.setattr(f"labelfree.training.{name}.time", clock)
    monkeypatch.setattr(job, "try_steps", lambda *_: SEEMED)
    return clock


@pytest.fixture
def pictures(tmp_path):
    path = tmp_path / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), dtype=np.uint8))
    return path


def reckoner(steps=100, time_left=100.0, most=10_000, start=0):
    choices = [{"key": "steps", "value": steps, "reason": "trial steps"}]
    plan = SimpleNamespace(steps=steps, time_left=time_left, most_steps=most, choices=choices)
    plan.model_copy = lambda update: SimpleNamespace(**vars(plan) | update)
    return Length(plan, start, length.time.perf_counter())


def test_only_a_timed_training_from_its_start_is_reckoned():
    assert reckoner().shares
    assert not reckoner(start=3).shares
    assert not reckoner(time_left=None).shares


@pytest.mark.parametrize(("spent", "steps"), [(10.0, 110), (5.0, 210), (40.0, 35), (2000.0, 21)])
def test_steps_fit_the_time_at_the_pace_that_was_measured(clock, spent, steps):
    found = reckoner()
    found.reckon(10)
    clock.now = spent
    assert found.reckon(20).steps == steps


def test_what_the_first_steps_do_once_is_not_reckoned_for_all(clock):
    found = reckoner()
    clock.now = 60.0
    assert found.reckon(10).steps == 100
    clock.now = 61.0
    assert found.reckon(20).steps == 20 + 390


def test_no_more_steps_than_are_worth_it(clock):
    found = reckoner(most=120)
    found.reckon(10)
    clock.now = 1.0
    assert found.reckon(20).steps == 120


def test_a_training_takes_the_time_it_was_given(clock, pictures, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", time_limit=20, **TINY)
    assert clock.now == pytest.approx(0.97 * 20, abs=TAKES)
    assert run.info["steps"] == run.info["step"] == round(clock.now / TAKES)
    assert run.state == "finished"
    assert run.info["plan"]["steps"] == run.info["steps"]
    assert [choice["value"] for choice in run.info["choices"] if choice["key"] == "steps"] == [run.info["steps"]]
    last = run.metrics()[-1]
    assert last["step"] == run.info["steps"]
    assert last["learning_rate"] < 0.01 * run.metrics()[0]["learning_rate"]


def test_workers_start_once_though_steps_are_reckoned_anew(clock, pictures, tmp_path, monkeypatch):
    started, ahead = [], Loader._ahead
    monkeypatch.setattr(Loader, "_ahead", lambda self, *steps: started.append(steps[0]) or ahead(self, *steps))
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", time_limit=20, cache="none", workers=1, **TINY)
    assert started == [0]
    assert run.info["steps"] == round(clock.now / TAKES)


def test_what_was_decided_outlasts_the_process(clock, pictures, tmp_path, monkeypatch):
    whole = labelfree.pretrain(str(pictures), out=tmp_path / "whole", time_limit=20, **TINY)

    class Killed(BaseException):
        pass

    written = {}

    def reckon(self, done, own=Length.reckon):
        if done > 20:
            written.update(json.loads((tmp_path / "cut" / "run.json").read_text()))
            raise Killed
        return own(self, done)

    clock.now = 0.0
    monkeypatch.setattr(Length, "reckon", reckon)
    with pytest.raises(Killed):
        labelfree.pretrain(str(pictures), out=tmp_path / "cut", time_limit=20, checkpoint_every=1000, **TINY)
    again = labelfree.pretrain(resume=tmp_path / "cut")
    assert again.info["steps"] == written["steps"] == whole.info["steps"]
    assert again.info["health"] == whole.info["health"]
