"""Looks at a source that are taken once, however many ask: what a folder lists, how a table begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
_seen: ContextVar[dict[Any, Any] | None] = ContextVar("seen", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """While it lasts, functions that are marked `once` remember their answers. Sources must not change meanwhile."""
    token = _seen.set({} if _seen.get() is None else _seen.get())
    try:
        yield
    finally:
        _seen.reset(token)


def once(look: Callable[P, R]) -> Callable[P, R]:
    """A function of hashable arguments whose answers are remembered where `remembering` says so."""

    @wraps(look)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        seen = _seen.get()
        if seen is None:
            return look(*args, **kwargs)
        key = (look, args, tuple(kwargs.items()))
        if key not in seen:
            seen[key] = look(*args, **kwargs)
        return seen[key]

    return asked


def kept(look: Callable[[S], R]) -> Callable[[S], R]:
    """A method whose answer its object, an opened source, keeps."""
    name = f"{look.__name__}, kept"

    @wraps(look)
    def asked(self: S) -> R:
        own = vars(self)
        if name not in own:
            own[name] = look(self)
        found: R = own[name]
        return found

    return asked
