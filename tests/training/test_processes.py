"""Two processes are one: started here, by torchrun, or by SLURM's srun."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import FORKED, command
from runs import Net

import labelfree
from labelfree.data.loader import WorkerDied
from labelfree.errors import LabelfreeError, machine_trouble
from labelfree.modalities.text import Text
from labelfree.tensors import read_tensors
from labelfree.training import processes
from labelfree.training.same import check_agreed, marks_of

#: Plain gradient descent, so that a difference of weights is one of gradients.
TINY = {"method": "simclr", "size": 8, "threads": 1, "projector": (32, 16), "steps": 3, "batch_size": 16, "warmup": 0}
TINY |= {
    "encoder": "transformer:nano",
    "patch": 4,
    "precision": "32",
    "optimizer": "sgd",
    "learning_rate": 0.5,
    "weight_decay": 0.0,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    return labelfree.pretrain(str(pictures), out=tmp_path_factory.mktemp("alone") / "run", **TINY)


@pytest.fixture
def forked(monkeypatch):
    """Processes that need not import everything anew: how they start from nothing is for the command line to try."""
    monkeypatch.setattr(processes.mp, "start_processes", partial(processes.mp.start_processes, start_method=FORKED))


def weights(path: Path):
    config = json.loads((path / "encoder" / "config.json").read_text())
    return read_tensors(path / "encoder" / "model.safetensors", config["sha256"])


def check_equal(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert max(float((first[name].float() - second[name].float()).abs().max()) for name in first) < 1e-5
    losses = [[line["loss"] for line in labelfree.load(path).metrics()] for path in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def words(pictures: Path, out: Path) -> list[str]:
    flags = [f"--{key}={TINY[key]}" for key in ("method", "encoder", "steps")]
    rest = {key: value for key, value in TINY.items() if key not in ("method", "encoder", "steps")}
    settings = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in rest.items()]
    return ["pretrain", str(pictures), "--out", str(out), *flags, *settings]


def test_devices_two_from_the_command_line(pictures, alone, tmp_path):
    out = tmp_path / "run"
    both = [*words(pictures, out), "devices=2", "strategy=ddp"]
    done = subprocess.run([sys.executable, "-m", "labelfree", *both], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_equal(alone.path, out)


def test_shards_of_two(pictures, alone, tmp_path, forked):
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", devices=2, strategy="fsdp", **TINY)
    check_equal(alone.path, run.path)


def test_two_stopped_by_sigterm_go_on_exactly(pictures, tmp_path, forked):
    long = {**TINY, "steps": 20, "checkpoint_every": 4, "devices": 2}
    whole = labelfree.pretrain(str(pictures), out=tmp_path / "whole", **long)
    out = tmp_path / "run"

    def stop():
        while not list((out / "checkpoints").glob("step-*[0-9]")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=stop, daemon=True).start()
    run = labelfree.pretrain(str(pictures), out=out, **long)
    assert run.state == "stopped"
    assert 0 < run.info["step"] < long["steps"]
    assert labelfree.pretrain(resume=out).state == "finished"
    ours, theirs = weights(out), weights(whole.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_time_limit_means_the_same_steps_to_all(pictures, tmp_path, forked):
    timed = {key: value for key, value in TINY.items() if key != "steps"}
    run = labelfree.pretrain(str(pictures), out=tmp_path / "run", devices=2, time_limit=6, **timed)
    assert run.state == "finished"
    assert run.info["step"] == run.info["steps"] == run.metrics()[-1]["step"]


def test_torchrun(pictures, alone, tmp_path):
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "labelfree"]
    done = subprocess.run([*launcher, *words(pictures, out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_equal(alone.path, out)
    assert torch.isfinite(next(iter(weights(out).values()))).all()


def test_srun(pictures, alone, tmp_path):
    """What srun gives to each of two tasks."""
    out = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_NTASKS": 2, "SLURM_NNODES": 1, "SLURM_STEP_NUM_TASKS": 2, "SLURM_JOB_ID": 7, "SLURM_NODEID": 0}
    tasks = []
    for rank in (0, 1):
        told = job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
        environment = {key: str(value) for key, value in told.items()}
        tasks.append(command(words(pictures, out), tmp_path / f"{rank}.log", environment))
    for rank, task in enumerate(tasks):
        task.join()
        assert task.exitcode == 0, (tmp_path / f"{rank}.log").read_text()
    check_equal(alone.path, out)


def test_a_batch_script_without_srun_is_one_process(pictures, tmp_path, monkeypatch):
    for name, value in {"NTASKS": 4, "PROCID": 0, "JOB_ID": 7, "NTASKS_PER_NODE": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert processes.outside_world() == 1
    assert labelfree.pretrain(str(pictures), out=tmp_path / "run", **TINY).state == "finished"


def test_a_process_alone_is_the_first_whatever_was_left_over(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.is_first()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not processes.is_first()


def test_processes_wait_for_the_first_as_long_as_it_plans(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes._make_fabric("cpu", 2).strategy._timeout >= timedelta(days=1)


def test_all_processes_start_from_the_weights_of_another_run(pictures, alone, tmp_path, forked):
    one, two = (
        labelfree.pretrain(str(pictures), out=tmp_path / f"{devices}", init=alone.path, devices=devices, **TINY)
        for devices in (1, 2)
    )
    check_equal(one.path, two.path)


class Watched(Net):
    """A network of the user's that notes when it is moved and when it runs."""

    def __init__(self):
        super().__init__()
        self.happened = []

    def _apply(self, fn, recurse=True):
        self.happened.append("moved")
        return super()._apply(fn, recurse)

    def forward(self, x):
        self.happened.append("ran")
        return super().forward(x.mean(dim=1, keepdim=True))


def test_a_network_of_the_users_is_back_on_the_cpu_before_other_processes_start(pictures, tmp_path, monkeypatch):
    network = Watched()

    def start(*arguments, **options):
        network.happened.append("started")
        return SimpleNamespace(pids=list, join=lambda: True)

    monkeypatch.setattr(processes.mp, "start_processes", start)
    labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "encoder": network, "devices": 2})
    assert network.happened[-3:] == ["ran", "moved", "started"]


def test_a_network_of_the_users_is_back_on_the_cpu_after_the_training(pictures, tmp_path):
    network = Watched()
    labelfree.pretrain(str(pictures), out=tmp_path / "run", **{**TINY, "encoder": network})
    assert network.happened[-2:] == ["ran", "moved"]


def test_a_script_without_a_guard_is_told_so(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(LabelfreeError, match=r'runs the script anew.* `if __name__ == "__main__":` around'):
        labelfree.pretrain("nowhere")


def fail(fabric, kind, job):
    if kind == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
    raise WorkerDied("A process that reads the source was killed.", "Set workers=0.")


@pytest.mark.parametrize("kind", ["memory", "worker"])
def test_what_a_process_is_told_to_mend_is_told_as_by_one_alone(kind, forked):
    with pytest.raises(Exception) as alone:
        fail(None, kind, None)
    expected = machine_trouble(alone.value) or alone.value
    with pytest.raises(LabelfreeError) as told:
        processes.run_everywhere(fail, kind, None, "cpu", 2)
    assert (told.value.problem, told.value.remedy) == (expected.problem, expected.remedy)


@pytest.mark.parametrize(("code", "words"), [(1, r"1 of the training ended with code 1\. .*__main__"), (-9, "SIGKILL")])
def test_processes_that_end_before_the_training_are_told_and_leave_nothing(
    pictures, tmp_path, monkeypatch, code, words
):
    def join():
        raise processes.mp.ProcessExitedException("process 1 terminated", 1, 7, code)

    monkeypatch.setattr(processes.mp, "start_processes", lambda *_, **__: SimpleNamespace(pids=list, join=join))
    with pytest.raises(LabelfreeError, match=words):
        labelfree.pretrain(str(pictures), out=tmp_path / "run", devices=2, **TINY)
    assert not (tmp_path / "run").exists()


def test_a_source_that_cannot_be_handed_to_other_processes_is_named(pictures, tmp_path, forked):
    class Local:
        def __len__(self):
            return 32

        def __getitem__(self, index):
            return np.full((8, 8, 3), index, np.uint8)

    with pytest.raises(LabelfreeError, match=r"cannot be handed to other processes: .*Local.*\. Set devices=1"):
        labelfree.pretrain(Local(), modality="image", out=tmp_path / "run", devices=2, **TINY)
    assert not (tmp_path / "run").exists()


def test_all_processes_see_the_source_without_the_run_inside_it(tmp_path, forked):
    values = np.random.default_rng(0)
    for number in range(16):
        (tmp_path / f"{number:02}.bin").write_bytes(values.bytes(64))
    options = {"modality": "bytes", "encoder": "transformer:pico", "threads": 1, "steps": 1, "batch_size": 8}
    run = labelfree.pretrain(tmp_path, out=tmp_path / "run", devices=2, **options)
    assert run.state == "finished"


def test_a_process_that_finds_another_source_than_the_first_is_refused():
    """It would draw other samples by the same numbers."""
    first, other = (Text().open(["one", word]) for word in ("two", "2"))
    check_agreed(SimpleNamespace(dataset=first), "texts", marks_of(first, "texts"))
    with pytest.raises(LabelfreeError, match="One process found 2 samples in the source 'texts' and the first one 2"):
        check_agreed(SimpleNamespace(dataset=other), "texts", marks_of(first, "texts"))
