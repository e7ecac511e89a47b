"""What will be wanted next, read by threads meanwhile (decoders release the interpreter lock)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from labelfree import runtime

T = TypeVar("T")
R = TypeVar("R")

#: Results that are ready, beside those that threads are at, before anybody asks for them.
AHEAD = 2
#: Samples that a thread reads at a time.
PIECE = 32
#: More threads than this hardly read faster.
MOST = 8


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Results of `read` for each item, in order; by a thread for each core, unless it is said how many."""
    count = min(runtime.cores(), MOST) if threads is None else threads
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) == count + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
