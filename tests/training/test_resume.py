"""Stop anywhere, resume exactly: the weights are those of the run that was never stopped, bit for bit."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from processes import command

import labelfree
from labelfree.data.sources import read_table
from labelfree.encoders.saved import save_encoder
from labelfree.errors import LabelfreeError
from labelfree.tensors import read_tensors
from labelfree.training.folder import held
from labelfree.training.recorder import Recorder

TINY = {"encoder": "timm:test_resnet", "method": "simclr", "size": 8, "threads": 1, "projector": (32, 16), "steps": 40}
TINY |= {"batch_size": 16, "checkpoint_every": 5, "precision": "32"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    return {
        cache: labelfree.pretrain(str(pictures), out=tmp_path_factory.mktemp(cache) / "run", cache=cache, **TINY)
        for cache in ("memory", "none")
    }


def weights(run):
    config = json.loads((run.path / "encoder" / "config.json").read_text())
    return read_tensors(run.path / "encoder" / "model.safetensors", config["sha256"])


def same(a, b):
    a, b = weights(a), weights(b)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def numbers(run):
    timed = ("seconds", "samples_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in run.metrics()]


def runs(process):
    """Whether a process is there, and not only waits for somebody to ask how it ended."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def interrupted(pictures: Path, out: Path, number: signal.Signals, **options) -> int:
    """Start a run in a process of its own and end it with a signal after some steps; its exit code."""
    words = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in {**TINY, **options}.items()]
    flags = tuple(f"{name}=" for name in ("encoder", "method", "steps"))
    words = [f"--{word}" if word.startswith(flags) else word for word in words]
    said = out.with_suffix(".log")
    process = command(["pretrain", str(pictures), "--out", str(out), *words], said)
    checkpoints = out / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*[0-9]")):
        assert process.is_alive(), said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    helpers = psutil.Process(process.pid).children(recursive=True)
    # a terminal and a cluster send theirs to all processes; that a killed one takes the others along is for it to show
    for pid in [helper.pid for helper in helpers if number != signal.SIGKILL] + [process.pid]:
        os.kill(pid, number)
    process.join(timeout=60)
    while any(runs(helper) for helper in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process.exitcode


def test_kill_in_mid_epoch(pictures, unbroken, tmp_path):
    out = tmp_path / "run"
    assert interrupted(pictures, out, signal.SIGKILL, cache="none", workers=2) == -signal.SIGKILL
    killed = labelfree.load(out)
    assert killed.state == "running"
    assert killed.embed(pictures).shape == (64, killed.encoder.dim)
    run = labelfree.pretrain(resume=out)
    assert run.state == "finished"
    assert same(run, unbroken["none"])
    assert numbers(run) == numbers(unbroken["none"])


@pytest.mark.parametrize(
    ("number", "cache", "workers"),
    [(signal.SIGTERM, "memory", 0), (signal.SIGINT, "memory", 0), (signal.SIGTERM, "none", 2)],
)
def test_a_signal_saves_and_says_stopped(pictures, unbroken, tmp_path, number, cache, workers):
    out = tmp_path / "run"
    interrupted(pictures, out, number, cache=cache, workers=workers)
    stopped = labelfree.load(out)
    assert stopped.state == "stopped"
    assert (out / "encoder" / "model.safetensors").exists()
    run = labelfree.pretrain(resume=out)
    assert same(run, unbroken[cache])
    assert numbers(run) == numbers(unbroken[cache])


def stop_at(last, monkeypatch):
    """Have trainings asked to stop at this step."""
    tick = Recorder._tick

    def stopped(recorder, step):
        tick(recorder, step)
        if step == last:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Recorder, "_tick", stopped)


def test_a_run_killed_after_its_last_step_ends_with_the_numbers_of_that(unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken["memory"].path, out)
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(
        json.dumps({key: v for key, v in info.items() if key != "health"} | {"state": "running"})
    )
    run = labelfree.pretrain(resume=out)
    assert run.state == "finished"
    assert run.info["health"] == info["health"]
    assert run.info["samples_per_second"] == info["samples_per_second"] > 0


def test_a_resumed_run_has_all_its_numbers_as_a_table(pictures, tmp_path, monkeypatch, capsys):
    stop_at(7, monkeypatch)
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", csv=True, log_every=1, **{**TINY, "steps": 10})
    assert run.state == "stopped"
    capsys.readouterr()
    assert labelfree.load(run.path).encoder.dim
    assert "this run is not finished (stopped at step 7)" in capsys.readouterr().err
    assert read_table(run.path / "metrics.csv")["step"].to_pylist() == list(range(1, 8))
    run = labelfree.pretrain(resume=run.path)
    table = read_table(run.path / "metrics.csv")
    assert table["step"].to_pylist() == list(range(1, 11))
    assert table["loss"].to_pylist() == [line["loss"] for line in run.metrics()]


def test_a_run_goes_on_on_a_machine_without_its_gpu_where_it_is_told_to(pictures, tmp_path, monkeypatch, capsys):
    stop_at(1, monkeypatch)
    out = tmp_path / "run"
    run = labelfree.pretrain(str(pictures), out=out, **{**TINY, "steps": 2})
    run.info["plan"]["training"] |= {"accelerator": "cuda", "cache": "device"}
    (out / "run.json").write_text(json.dumps(run.info))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(LabelfreeError, match=r"1 GPU\(s\) were asked for and 0 found. Set accelerator=cpu."):
        labelfree.pretrain(resume=out)
    with pytest.raises(LabelfreeError, match="A batch of 16 cannot be shared by 3 processes"):
        labelfree.pretrain(resume=out, accelerator="cpu", devices=3)
    capsys.readouterr()
    run = labelfree.pretrain(resume=out, **{"training.accelerator": "cpu", "cache": "auto"})
    assert run.state == "finished"
    said = capsys.readouterr().err
    assert "accelerator = cpu  (was cuda)" in said
    assert "cache = memory" in said
    used = labelfree.load(out).info["settings"]["training"]
    assert (used["accelerator"], used["cache"]) == ("cpu", "memory")


def test_workers_change_nothing(pictures, unbroken, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", cache="none", workers=1, **TINY)
    assert same(run, unbroken["none"])


def test_a_finished_run_is_left_as_it_is(unbroken):
    before = (unbroken["memory"].path / "run.json").read_text()
    assert labelfree.pretrain(resume=unbroken["memory"].path).state == "finished"
    assert (unbroken["memory"].path / "run.json").read_text() == before


@pytest.mark.parametrize("other", [{"steps": 100}, {"learning_rate": 7}, {"seed": 3}, {"nonsense": 3}])
def test_what_a_resumed_run_cannot_heed_is_refused(unbroken, other):
    run = unbroken["memory"].path
    with pytest.raises(LabelfreeError, match=rf"takes no other {next(iter(other))}.*--init {run}"):
        labelfree.pretrain(resume=run, **other)


def test_a_source_that_changed_is_not_continued(tmp_path):
    source, out = tmp_path / "pictures.npy", tmp_path / "run"
    generator = np.random.default_rng(0)
    np.save(source, generator.integers(0, 255, (32, 8, 8, 3), dtype=np.uint8))
    run = labelfree.pretrain(str(source), out=out, **{**TINY, "steps": 2})
    run.info["state"] = "stopped"
    (out / "run.json").write_text(json.dumps(run.info))
    np.save(source, generator.integers(0, 255, (31, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(LabelfreeError, match="has changed"):
        labelfree.pretrain(resume=out)


def test_an_encoder_whose_writing_is_cut_short_leaves_the_old_one_whole(pictures, tmp_path, monkeypatch):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 1})
    old, encoder = weights(run), run.encoder
    next(encoder.parameters()).data.add_(1)

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("labelfree.encoders.saved.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_encoder(run.path / "encoder", encoder, run.modality, "timm:test_resnet", causal=False)
    assert all(torch.equal(value, old[name]) for name, value in weights(labelfree.load(run.path)).items())


def test_an_altered_encoder_is_not_loaded(pictures, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 1})
    path = run.path / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    with pytest.raises(LabelfreeError, match="cut or altered"):
        _ = labelfree.load(run.path).encoder


def test_starting_from_another_run_keeps_its_weights_and_statistics(pictures, unbroken, tmp_path):
    first = unbroken["memory"]
    options = {**TINY, "steps": 1, "learning_rate": 1e-9, "optimizer": "sgd"}
    del options["encoder"], options["size"]
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", init=first.path, **options)
    assert run.modality.state() == first.modality.state()
    learnt = {name: value for name, value in weights(first).items() if name.endswith("weight")}
    assert all(torch.allclose(weights(run)[name], value, atol=1e-5) for name, value in learnt.items())
    assert first.info["before"] == []
    assert [seen["fingerprint"] for seen in run.info["before"]] == [first.info["fingerprint"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"modality": "text"}, "learnt from image data"), ({"encoder": "timm:resnet18"}, "and [0-9]+ more.*--encoder")],
)
def test_a_run_of_something_else_is_no_start(pictures, unbroken, tmp_path, options, words):
    options = {**TINY, "steps": 1, **options}
    with pytest.raises(LabelfreeError, match=words):
        labelfree.pretrain(str(pictures), out=tmp_path / "run", init=unbroken["memory"].path, **options)


def test_a_run_killed_before_its_first_checkpoint_still_starts_where_it_was_told_to(pictures, unbroken, tmp_path):
    """Nothing in the plan says which weights another run had: the run keeps what it starts from."""
    out, options = tmp_path / "run", {**TINY, "steps": 1, "learning_rate": 1e-9, "optimizer": "sgd"}
    run = labelfree.pretrain(str(pictures), out=out, init=unbroken["memory"].path, **options)
    whole = weights(run)
    shutil.rmtree(out / "checkpoints" / "step-000000001")
    shutil.rmtree(out / "encoder")
    (out / "run.json").write_text(json.dumps({**run.info, "state": "running", "step": 0}))
    with pytest.raises(LabelfreeError, match="before its first checkpoint"):
        _ = labelfree.load(out).encoder
    again = weights(labelfree.pretrain(resume=out))
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_run_without_the_weights_that_it_was_given_is_not_continued(pictures, unbroken, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", init=unbroken["memory"].path, **{**TINY, "steps": 1})
    stopped(run)
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(LabelfreeError, match="has lost the weights that it started from"):
        labelfree.pretrain(resume=run.path)


def test_weights_that_cannot_be_kept_leave_no_run(pictures, unbroken, tmp_path, monkeypatch):
    def full(*given):
        raise LabelfreeError("The disk is full.")

    monkeypatch.setattr("labelfree.training.folder.save_state", full)
    options = {**TINY, "steps": 1, "init": unbroken["memory"].path}
    with pytest.raises(LabelfreeError, match="full"):
        labelfree.pretrain(str(pictures), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists(), "so that it can be tried again"


def stopped(run, **info):
    """Have a run that has ended look as one that was stopped."""
    (run.path / "run.json").write_text(json.dumps({**run.info, "state": "stopped", **info}))


def test_a_network_of_the_users_starts_from_its_own_weights_again(pictures, tmp_path, monkeypatch):
    def network(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 16))

    options = {**TINY, "steps": 1, "size": 8}
    whole = labelfree.pretrain(str(pictures), out=tmp_path / "whole", **options | {"encoder": network(1)})

    def killed(recorder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Recorder, "run", killed)
        labelfree.pretrain(str(pictures), out=tmp_path / "run", **options | {"encoder": network(1)})
    run = labelfree.pretrain(resume=tmp_path / "run", encoder=network(2))
    assert same(run, whole)


def test_a_run_that_is_being_trained_is_left_alone(pictures, tmp_path, monkeypatch):
    refused, tick = [], Recorder._tick

    def also_held(recorder, step):
        tick(recorder, step)
        with pytest.raises(LabelfreeError, match="is being trained by process"), held(tmp_path / "run"):
            pass
        refused.append(step)

    monkeypatch.setattr(Recorder, "_tick", also_held)
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 2})
    assert refused == [1, 2]
    assert not list(run.path.glob(".*"))
    stopped(run)
    with held(run.path), pytest.raises(LabelfreeError, match=rf"is being trained by process {os.getpid()} on"):
        labelfree.pretrain(resume=run.path)
    assert labelfree.pretrain(resume=run.path).state == "finished"


def test_samples_that_can_be_read_by_now_are_named(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.random.default_rng(0)
    for number in range(32):
        Image.fromarray(values.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    whole = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(bytes(len(whole)))
    run = labelfree.pretrain(folder, out=tmp_path / "run", **{**TINY, "steps": 1})
    stopped(run)
    (folder / "07.png").write_bytes(whole)
    with pytest.raises(LabelfreeError, match=r"could be read when .* the other way round: '07.png' for one, of 1"):
        labelfree.pretrain(resume=run.path)


def test_the_place_that_a_source_has_moved_to_is_written_down(pictures, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 1})
    stopped(run)
    moved = shutil.copy(pictures, tmp_path / "elsewhere.npy")
    run = labelfree.pretrain(str(moved), resume=run.path)
    assert run.info["source"] == str(moved)


def test_a_source_of_random_samples_is_said_to_be_one(tmp_path, capsys):
    class Random:
        def __len__(self):
            return 32

        def __getitem__(self, index):
            return np.random.default_rng().integers(0, 255, (8, 8, 3), dtype=np.uint8)

    run = labelfree.pretrain(Random(), modality="image", out=tmp_path / "run", **{**TINY, "steps": 1})
    assert "gives other samples each time it is read" in capsys.readouterr().err
    stopped(run)
    with pytest.raises(LabelfreeError, match=r"The source \(Random\) gives other samples each time it is read"):
        labelfree.pretrain(Random(), resume=run.path)


def test_a_run_killed_while_its_encoder_was_exchanged_has_the_one_before(pictures, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 1})
    stopped(run)
    (run.path / "encoder").rename(run.path / "encoder.77.part.old")
    (run.path / "encoder.77.part").mkdir()
    assert labelfree.load(run.path).encoder.dim == run.encoder.dim
    labelfree.pretrain(resume=run.path)
    assert not list(run.path.glob("*.part*"))
    assert (run.path / "encoder" / "config.json").exists()


def test_a_plan_of_another_version_is_named(pictures, tmp_path):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "steps": 1})
    run.info["plan"]["training"]["of_tomorrow"] = 1
    stopped(run, versions={"labelfree": "9.9"})
    with pytest.raises(LabelfreeError, match=r"written by Labelfree 9\.9, .* its setting 'training\.of_tomorrow'"):
        labelfree.pretrain(resume=run.path)


def test_runs_are_found_at_home_and_from_another_working_directory(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = labelfree.pretrain(str(pictures), out="run", **{**TINY, "steps": 1})
    monkeypatch.chdir(Path(tmp_path.root))
    assert run.encoder.dim == labelfree.load("~/run").encoder.dim
    assert labelfree.pretrain(resume="~/run").state == "finished"
    again = labelfree.pretrain(str(pictures), out=tmp_path / "again", init="~/run", **{**TINY, "steps": 1})
    assert again.state == "finished"
