"""What the machine allows is known, and it is left as it was found."""

import multiprocessing
import os
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import psutil
import pytest
import torch
from runs import pictures, save

import labelfree
from labelfree import runtime
from labelfree.errors import LabelfreeError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 bytes free and the folder of its control groups, of which none is there yet."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(runtime, "GROUPS", tmp_path)
    monkeypatch.setattr(runtime, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)


def test_memory_is_what_the_container_leaves(machine: Path) -> None:
    assert runtime.free_memory() == 1000
    (machine / "own").write_text("0::/pod/job\n")
    write(machine / "pod" / "job", max="max\n", current="900\n", stat="active_file 0\n")
    assert runtime.free_memory() == 1000
    write(machine / "pod", max="950\n", current="900\n", stat="anon 800\nactive_file 60\ninactive_file 40\n")
    assert runtime.free_memory() == 150


def test_memory_is_what_a_container_of_the_old_kind_leaves(machine: Path) -> None:
    (machine / "own").write_text("4:memory:/somewhere/else\n3:cpuset:/\n0::/\n")
    write(machine / "memory", limit_in_bytes="500\n", usage_in_bytes="490\n", stat="total_inactive_file 30\n")
    assert runtime.free_memory() == 40


def test_cores_are_those_that_the_container_pays_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "own_cores", lambda: set(range(64)))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)
    assert runtime.cores() == 4


@pytest.mark.parametrize(
    ("words", "torchrun", "threads"),
    [(None, False, None), ("3", False, 3), ("1", False, 1), ("4,2", True, 4), ("1", True, None), ("many", False, None)],
)
def test_threads_are_those_that_a_scheduler_allows(
    words: str | None, torchrun: bool, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OMP_NUM_THREADS", words), ("TORCHELASTIC_RUN_ID", "7" if torchrun else None)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert runtime.threads_allowed() == threads


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_a_training_kept_is_given_back_afterwards() -> None:
    process = psutil.Process()
    with runtime.state_kept():
        pass  # torch loads some of itself at the end
    with runtime.state_kept():
        runtime.prepare_machine()
        before = process.memory_info().rss
        np.ones(300 << 20, np.uint8)
        assert process.memory_info().rss > before + (100 << 20), "kept for the next step"
    assert process.memory_info().rss < before + (20 << 20)


def test_one_training_at_a_time_in_a_process() -> None:
    def entered() -> bool:
        with runtime.state_kept():
            return True

    with ThreadPoolExecutor(1) as pool:
        with runtime.state_kept():
            assert entered(), "parts of one computation are one"
            with pytest.raises(LabelfreeError, match=r"Another thread .* use processes"):
                pool.submit(entered).result()
        assert pool.submit(entered).result()


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def surroundings() -> list[AbstractContextManager[object]]:
    """What a program may have set around a call."""
    mixed = torch.autocast("cpu", torch.bfloat16)
    return [torch.no_grad(), torch.inference_mode(), torch.device("meta"), double_by_default(), mixed]


#: A training as short as one can be, and a fine-tuning.
SHORT = {"encoder": "timm:test_resnet", "method": "simclr", "size": 8, "batch_size": 8, "precision": "32", "threads": 1}
TUNED = {"most_steps": 2, "learning_rate": 1e-3, "layer_decay": 1.0}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What a run gives that nothing disturbs."""
    source = pictures(24)[0]
    return labelfree.pretrain(source, out=tmp_path_factory.mktemp("plain") / "run", steps=1, **SHORT).embed(source)


@pytest.mark.parametrize("number", range(5), ids=["no_grad", "inference_mode", "meta", "float64", "autocast"])
def test_what_a_program_has_set_in_torch_changes_nothing(number: int, features: np.ndarray, tmp_path: Path) -> None:
    def now() -> tuple[object, ...]:
        made = torch.empty(1)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return *modes, made.dtype, made.device

    source, labelled = pictures(24)[0], save(tmp_path / "labelled.npz", 30, seed=1)
    with surroundings()[number]:
        before = now()
        run = labelfree.pretrain(source, out=tmp_path / "run", steps=1, **SHORT)
        np.testing.assert_array_equal(run.embed(source), features)
        run.evaluate(labelled, label="label", seeds=1, budgets="100%", protocols="linear", baselines="none")
        run.anomalies(source, source)
        model = run.finetune(labelled, "label", tmp_path / "model", **TUNED)
        np.testing.assert_array_equal(labelfree.load(model.path).probabilities(source), model.probabilities(source))
        assert now() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_is_forked_while_another_thread_trains_may_train() -> None:
    inside, done = threading.Event(), threading.Event()

    def train() -> None:
        with runtime.state_kept():
            inside.set()
            done.wait(60)

    def forked() -> None:
        with runtime.state_kept():
            pass

    thread = threading.Thread(target=train)
    thread.start()
    inside.wait(60)
    process = multiprocessing.get_context("fork").Process(target=forked)
    process.start()
    process.join(60)
    done.set()
    thread.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),  # AMX hidden: half the rate of float32
        ("GenuineIntel", "avx512_bf16 amx_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_bfloat16_is_taken_where_a_processor_is_faster_with_it(
    vendor: str, flags: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_cpu", lambda: {"vendor_id": vendor, "flags": flags})
    assert runtime.fast_bf16(torch.device("cpu")) is fast
