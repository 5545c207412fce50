"""How much of a model's weights has been read, for whoever waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[float], object] | None] = ContextVar("listener", default=None)


@contextmanager
def telling(listener: Callable[[float], object]) -> Iterator[None]:
    """While it is open, `listener` hears from 0 to 1 what share of the weights this thread has read."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(share: float) -> None:
    """Said by those who read weights; nobody may be listening."""
    listener = _listener.get()
    if listener is not None:
        listener(share)
