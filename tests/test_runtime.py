"""What the machine allows is known, and it is left as it was found."""

import platform
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import psutil
import pytest

from labelfree import runtime


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
