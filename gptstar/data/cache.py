"""The folder of prepared corpora: names made of what went in, one process at a time, and disks that are full."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptstar.errors import UserError
from gptstar.files import locked
from gptstar.sizes import say_bytes


def key_of(values: object) -> str:
    """Stands for some values, in file names."""
    return hashlib.sha256(json.dumps(_as_written(values), sort_keys=True).encode()).hexdigest()[:16]


def _as_written(values: object) -> object:
    """1.0 and 1 are the same setting, whichever of them a file or a program says."""
    if isinstance(values, dict):
        return {key: _as_written(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_as_written(value) for value in values]
    return int(values) if isinstance(values, float) and values.is_integer() else values


@contextmanager
def only_one(path: Path, name: str, say: Callable[[str], object]) -> Iterator[None]:
    """Waits until no other process on this machine works on the same; its end, however it comes, frees it."""
    path.parent.mkdir(exist_ok=True)
    with locked(path, busy=lambda: say(f"another process is preparing {name}: waiting for it")):
        yield


@contextmanager
def disk_errors(cache: Path) -> Iterator[None]:
    """Says which folder cannot be written, and how much room there is."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(cache).free
        raise UserError(
            f"data.cache_dir={cache} cannot be written ({error.strerror or error}; {say_bytes(free)} free): "
            "free some space or choose another folder; what is finished stays, and the same command goes on from there"
        ) from error
