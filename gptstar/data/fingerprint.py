"""One hash over the content of many files, which remembers what it has hashed before."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from gptstar.data.sources import is_remote, stamp, tells_content
from gptstar.errors import UserError
from gptstar.files import replace_text

SAVE_BYTES = 10_000_000_000  # hashed between two times of writing them down
SETTLED_SECONDS = 2.0  # a file that changed this recently may change again without showing another time


def fingerprint(files: Iterable[str | os.PathLike[str]], memory: Path | None = None) -> str:
    """One sha256 over names and contents, whatever folder they lie in.

    memory: a JSON file of hashes by path, size, time of change and inode, so that a terabyte is hashed once and not at
    every start; a damaged one is made anew. A remote file counts with the checksum, or size and time, that its server
    states. Raises UserError for a file that cannot be read, or whose server states none of these.
    """
    hashes = _Hashes(memory)
    total = hashlib.sha256()
    for file in files:
        path = os.fspath(file)
        total.update(
            f"{path.rpartition('/')[2] if is_remote(path) else Path(path).name}\0{hashes.get(path)}\n".encode()
        )
    hashes.save()
    return total.hexdigest()


class _Hashes:
    def __init__(self, memory: Path | None) -> None:
        self.memory = memory
        self.known = _read(memory)
        self.new: dict[str, list[str]] = {}
        self.unsaved = 0  # bytes

    def get(self, path: str) -> str:
        now = stamp(path)
        if is_remote(path):
            if not tells_content(now):
                raise UserError(f"{path}: its server states neither checksum nor time of change: download it first")
            return now
        key = os.path.abspath(path)
        if self.known.get(key, ["", ""])[0] == now:
            return self.known[key][1]
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                self.unsaved += file.tell()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if stamp(path) != now:
            raise UserError(f"{path} changed while it was read: leave it alone and start again")
        if time.time() - os.stat(path).st_mtime > SETTLED_SECONDS:
            self.new[key] = [now, digest]
        if self.unsaved >= SAVE_BYTES:
            self.save()
        return digest

    def save(self) -> None:
        if self.memory is None or not self.new:
            return
        self.known = _read(self.memory) | self.known | self.new  # another process may have written meanwhile
        self.new, self.unsaved = {}, 0
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.memory, json.dumps(self.known, indent=0))
        except OSError:
            pass  # only time is lost


def _read(memory: Path | None) -> dict[str, list[str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8")) if memory is not None else {}
        return {str(path): [str(now), str(digest)] for path, (now, digest) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
