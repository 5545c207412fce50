"""Files that are never seen half-written, locks on them, and where those lie that can be made again."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptstar.errors import UserError

POLL = 0.2  # seconds between two tries to get a lock


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gptstar`, ~/.cache/gptstar by default; it may not exist. RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptstar"


def make_folder(folder: Path, key: str = "output_dir") -> None:
    """Makes what `key` names. UserError for one that cannot be made or written to: before hours are spent, not after"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be made ({error.strerror}): choose another one") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}={folder} cannot be written to: choose another one")


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames: a kill leaves the old content or the new."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


@contextmanager
def locked(
    path: Path, patience: float | None = None, busy: Callable[[], object] = lambda: None
) -> Iterator[int | None]:
    """A descriptor of the file (made where there is none) or folder, while no other process here holds its lock.

    patience: seconds to wait until it is free, as long as it takes by default; None where it is still taken then.
    busy: called before waiting. The end of whoever holds it, however it comes, frees it.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    held = False
    try:
        held = _lock(descriptor, patience, busy)
        yield descriptor if held else None
    finally:
        if held:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked child has it open too
        os.close(descriptor)


def _lock(descriptor: int, patience: float | None, busy: Callable[[], object]) -> bool:
    began = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if began is None:
                began = time.monotonic()
                busy()
        if patience is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return True
        if time.monotonic() - began >= patience:
            return False
        time.sleep(POLL)
