"""The machine: threads, allocator, precision, device. The only place that knows what the hardware can do."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn

from labelfree.errors import LabelfreeError

#: Words for where to compute; "auto" is an NVIDIA GPU where there is one, else the processor.
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
#: What says which control groups this process is in, and what they allow and use (versions 2 and 1).
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


def own_cores() -> set[int]:
    """Numbers of the processor cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """Processor cores this process may use, or as many as the share of time that its container gets amounts to."""
    import joblib

    return min(len(own_cores()), joblib.cpu_count())


def threads_allowed() -> int | None:
    """Threads that OMP_NUM_THREADS leaves to this process, as those set it that divide cores; None where it says none.

    torchrun sets it to 1 for several processes, whatever the cores are: its 1 says nothing.
    """
    words = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not words.isdecimal() or (words == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return None
    return int(words) or None


def free_memory() -> int:
    """Bytes that are free on this machine, or as many as its container leaves to this process."""
    return min([psutil.virtual_memory().available, *(room for group in _memory_groups() for room in _rooms(group))])


def _memory_groups() -> Iterator[Path]:
    """Folders of the control groups that this process is in, where they may limit memory."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                root = GROUPS / ("memory" if controllers else "")
                own = root / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _rooms(group: Path) -> Iterator[int]:
    """Bytes that a control group leaves, if it has a limit; copies of files are given up where memory is wanted."""
    for limit, usage, of_files in MEMORY_FILES:
        with suppress(OSError, ValueError):  # not this version of control groups, or "max"
            most, taken = (int((group / name).read_text()) for name in (limit, usage))
            facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(0, most - taken + sum(int(facts[name]) for name in of_files if name in facts))


def shared_memory() -> int:
    """Bytes that processes may still share: in a container they can be few."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return free_memory()  # of another system, which keeps no such account


def prepare_machine(threads: int | str = "auto") -> None:
    """Set threads, unless "auto", and keep glibc from handing freed memory back at every step (which costs page
    faults), until the end of `state_kept`.
    """
    if threads != "auto":
        torch.set_num_threads(int(threads))
    _keep_memory(mapped_from=1 << 30, most=2**31 - 1, pad=64 << 20)


def _keep_memory(mapped_from: int, most: int, pad: int) -> None:
    """How glibc treats memory: bytes from which an allocation is mapped by itself, and so handed back when it is freed;
    bytes that are kept free at the end of the heap; and bytes that this grows by beyond what is asked for.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        libc.mallopt(m_mmap_threshold, mapped_from)
        libc.mallopt(m_trim_threshold, most)
        libc.mallopt(m_top_pad, pad)


def _give_memory_back() -> None:
    """Hand back what is free, and keep no more than glibc comes to by itself in a program that frees large blocks."""
    _keep_memory(mapped_from=32 << 20, most=64 << 20, pad=128 << 10)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def prepare_products(deterministic: bool) -> None:
    """Have a GPU's matrix products be the same in every run; it asks for this once, before the first of them."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it starts, whatever the program around has set: numbers are float32 and on the CPU unless it is said
    otherwise, gradients are recorded, precision is not mixed.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as around:
        around.enter_context(torch.inference_mode(False))
        around.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # what says so takes part in every operation
            around.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                around.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _renew() -> None:
    """A process that is forked while a thread computes does not inherit that thread."""
    global _one
    _one = threading.RLock()
    _turns.clear()


_one = threading.RLock()
_turns: WeakKeyDictionary[nn.Module, AbstractContextManager[Any]] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def turn(network: nn.Module) -> AbstractContextManager[Any]:
    """Inside, no other thread has its turn with the network: for what moves it, or fills its memory."""
    return _turns.setdefault(network, threading.RLock())


@contextmanager
def state_kept() -> Iterator[None]:
    """Plain torch inside; its random numbers, threads and determinism are left as they were, for a program that goes on
    computing, and the memory that `prepare_machine` keeps is handed back.

    Raises:
        LabelfreeError: another thread is inside.
    """
    one = _one
    if not one.acquire(blocking=False):
        raise LabelfreeError(
            "Another thread of this program is training or evaluating, and torch's random numbers are there once only.",
            "Wait for it, or use processes.",
        )
    try:
        with _state_kept():
            yield
    finally:
        one.release()


@contextmanager
def _state_kept() -> Iterator[None]:
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    # asking a GPU that nobody has used yet would have every process of torchrun hold memory on the first one
    used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with plain_torch(), torch.random.fork_rng(used):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact, warn_only=lenient)
        _give_memory_back()


class Others:
    """What other programs take of the cores that this process may use, from here on.

    Threads of one computation wait for each other after every operation: on a core that something else is using, two of
    them can be many times slower than one alone.
    """

    def __init__(self) -> None:
        self._began, self._left = time.perf_counter(), self._unused()

    @staticmethod
    def _unused() -> float:
        """Processor seconds of these cores that others did not use: idle ones, and our own."""
        every = psutil.cpu_times(percpu=True)
        idle = (every[i].idle + getattr(every[i], "iowait", 0.0) for i in own_cores() if i < len(every))
        return sum(idle) + time.process_time()

    @property
    def cores(self) -> float:
        """Cores that they kept busy, on average."""
        unused = (self._unused() - self._left) / max(time.perf_counter() - self._began, 1e-3)
        return max(0.0, cores() - unused)


def device(accelerator: str = "auto") -> torch.device:
    """The device that `accelerator` means here."""
    if accelerator == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    return torch.device(accelerator)


def checked_device(accelerator: str = "auto", count: int = 1) -> torch.device:
    """The device that a user's word for it means here.

    Raises:
        LabelfreeError: no such word, or fewer than `count` of them.
    """
    if accelerator not in get_args(Accelerator):
        raise LabelfreeError(f"There is no accelerator '{accelerator}'.", f"Use {', '.join(get_args(Accelerator))}.")
    found = device(accelerator)
    if found.type == "cuda" and (have := torch.cuda.device_count()) < count:
        raise LabelfreeError(
            f"{count} GPU(s) were asked for and {have} found.",
            f"Set devices={have} or accelerator=cpu." if have else "Set accelerator=cpu.",
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise LabelfreeError("There is no Apple GPU here.", "Set accelerator=cpu.")
    return found


def clock(on: torch.device) -> float:
    """Seconds, read when the device has done all that it was asked to."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter()


def leave_device(module: nn.Module) -> None:
    """Bring a module back to the CPU, and give up what memory of a GPU nothing needs any more."""
    module.to("cpu")
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@lru_cache
def _cpu() -> dict[str, str]:
    """What Linux says of the first processor, by the names it uses; empty elsewhere."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        fields = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in fields}
    return {}


def fast_bf16(on: torch.device) -> bool:
    """Whether products of bfloat16 matrices take less time than those of float32.

    On CPUs: with AMX, and with AVX512-BF16 on AMD's. Intel's AVX512-BF16 without AMX (which virtual machines may hide)
    has half the rate of float32.
    """
    if on.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpu().get("flags", "").split()
    amd = _cpu().get("vendor_id") == "AuthenticAMD"
    return on.type == "cpu" and ("amx_bf16" in flags or (amd and "avx512_bf16" in flags))


def best_precision(on: torch.device) -> str:
    """ "bf16" or "32"."""
    return "bf16" if fast_bf16(on) else "32"


def autocast(on: torch.device, precision: str) -> AbstractContextManager[Any]:
    """A forward pass in "bf16" (mixed precision), in "32", or, "auto", in the best there is."""
    chosen = best_precision(on) if precision == "auto" else precision
    return torch.autocast(on.type, torch.bfloat16) if chosen == "bf16" else nullcontext()


@lru_cache
def flops(on: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large matrix product: a yardstick for choosing defaults."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 4096 if on.type == "cuda" else 768
    a = torch.ones(size, size, device=on, dtype=kind)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(3):
            b = a @ a
        float(b[0, 0])
        best = min(best, (time.perf_counter() - start) / 3)
    return 2 * size**3 / best


def peak_memory(on: torch.device) -> int:
    """Bytes: the most that was held so far, on the GPU or by this process."""
    if on.type == "cuda":
        return torch.cuda.max_memory_allocated(on)
    with suppress(OSError):
        # what resource reports on Linux may be the peak of the process that started this one
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(held.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def hardware() -> dict[str, str]:
    """What this was run on, for the record."""
    name = _cpu().get("model name") or platform.processor() or platform.machine()
    count = cores()
    cpu = f"{name}, {count} core{'' if count == 1 else 's'}"
    found = {"cpu": cpu, "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB"}
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return found


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("labelfree", "torch", "timm", "lightning-fabric", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
