"""Prepared documents on their way to shards: a part holds some consecutive blocks of one piece.

    STEM-00000.npz              tokens, what is known of each document, what was removed
    STEM-00000.keys.npy, STEM-00000.signatures.npy    to be compared with all others
    STEM-00000.json             written last: a part without it does not exist

STEM stands for the piece's content, so parts outlive a kill, and a mended file among others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptstar.data.worker import Chunk, reasons
from gptstar.files import replace_text

SUFFIXES = (".npz", ".keys.npy", ".signatures.npy", ".json")


@dataclass(frozen=True)
class Part:
    """A finished part. next_block: where the following one begins; last: whether it ends its piece."""

    path: Path  # without suffix
    piece: str
    next_block: int
    last: bool
    n_read: int
    n_byte: int
    documents: int
    tokens: int
    reasons: dict[str, int]

    @classmethod
    def write(cls, path: Path, piece: str, chunk: Chunk, next_block: int, last: bool) -> Part:
        """A kill at any moment leaves all of it or nothing."""
        removed = np.frombuffer(json.dumps([chunk.removed, chunk.contaminated]).encode(), np.uint8)
        tokens = np.frombuffer(chunk.tokens, np.uint8)
        _save(path, ".npz", lambda file: np.savez(file, tokens=tokens, documents=chunk.documents, removed=removed))
        _save(path, ".keys.npy", lambda file: np.save(file, chunk.keys))
        _save(path, ".signatures.npy", lambda file: np.save(file, chunk.signatures))
        n_token = int(chunk.documents["tokens"].sum())
        counts: Counter[str] = reasons(chunk)
        part = cls(
            path, piece, next_block, last, chunk.n_read, chunk.n_byte, len(chunk.documents), n_token, dict(counts)
        )
        replace_text(path.with_name(path.name + ".json"), json.dumps(asdict(part) | {"path": None}))
        return part

    @classmethod
    def found(cls, stem: Path) -> list[Part]:
        """The finished parts of a piece, in their order."""
        parts: list[Part] = []
        while True:
            path = part_path(stem, len(parts))
            try:
                parts.append(cls._read(path))
            except FileNotFoundError:
                return parts

    @classmethod
    def _read(cls, path: Path) -> Part:
        return cls(**(json.loads(path.with_name(path.name + ".json").read_text()) | {"path": path}))

    def documents_table(self) -> np.ndarray:
        """DOCUMENT (n,)."""
        with np.load(self._file(".npz")) as arrays:
            return arrays["documents"]

    def tokens_of_all(self, dtype: str) -> np.ndarray:
        """The token numbers of all documents, one after another."""
        with np.load(self._file(".npz")) as arrays:
            return arrays["tokens"].view(dtype)

    def removed(self) -> tuple[list[dict], list[dict]]:
        """What went, and what shares text with an evaluation set but stays."""
        with np.load(self._file(".npz")) as arrays:
            removed, contaminated = json.loads(arrays["removed"].tobytes())
        return removed, contaminated

    def keys(self) -> np.ndarray:
        """KEY (n,), on disk."""
        return on_disk(self._file(".keys.npy"))

    def signatures(self) -> np.ndarray:
        """uint32 (n, permutations), on disk."""
        return on_disk(self._file(".signatures.npy"))

    def remove(self) -> None:
        """The mark of its existence first."""
        for suffix in reversed(SUFFIXES):
            self._file(suffix).unlink(missing_ok=True)

    def _file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def sweep(folder: Path, pieces: set[str]) -> None:
    """Removes the parts of some pieces, whatever was in them, and what a kill has left half-written.

    Nobody else may be working there. The folder goes when nothing is left in it.
    """
    found = [Part._read(path.with_suffix("")) for path in folder.glob("[!.]*.json")]
    stay = {part.path.name for part in found if part.piece not in pieces}
    for part in found:
        if part.path.name not in stay:
            part.remove()
    for file in folder.iterdir():
        if file.name.split(".")[0] not in stay:
            file.unlink()
    if not stay:
        folder.rmdir()


def part_path(stem: Path, number: int) -> Path:
    """Without suffix."""
    return stem.with_name(f"{stem.name}-{number:05d}")


def on_disk(path: Path) -> np.ndarray:
    """An .npy file, mapped."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # nothing in it to map
        return np.load(path)


def _save(path: Path, suffix: str, save) -> None:
    target = path.with_name(path.name + suffix)
    temporary = target.with_name(f".{target.name}")
    with temporary.open("wb") as file:
        save(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
