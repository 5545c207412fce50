"""Standard output whose reader may leave: `python train.py | head` trains to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Outlet:
    """A stream that goes nowhere once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._close()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is still in its buffer goes there too
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """While entered, what is written to a closed pipe is lost, and nothing else is."""
    before, outlet = sys.stdout, _Outlet(sys.stdout)
    sys.stdout = outlet  # type: ignore[assignment]
    try:
        yield
    finally:
        outlet.flush()  # Python itself would complain at its end
        sys.stdout = before
