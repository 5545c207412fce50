"""Token shards: memory-mapped files of token numbers, with document offsets, counts and checksums.

A prepared corpus is a folder:

    meta.json                 what went in, and for each split its counts and shards
    tokenizer.json
    SPLIT-00000.bin           token numbers, little-endian uint16 or uint32, documents one after another,
                              each closed by ONE end-of-text token
    SPLIT-00000.offsets.npy   uint64, where each document starts in its shard
    verified.json             which of these files were read and found right here; no part of the corpus
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gptstar.errors import UserError
from gptstar.files import replace_text

OPEN_TRIES = 20
STAMP_FILE = "verified.json"
SETTLED_NS = 2 * 10**9  # a file changed twice within a tick of the disk's clock looks unchanged


@dataclass
class Shard:
    """One file of tokens and the checksums (sha256) of it and of its offsets."""

    file: str
    tokens: int
    documents: int
    sha256: str
    offsets_sha256: str

    @property
    def offsets_file(self) -> str:
        """The name of the file with the documents' starts."""
        return self.file.removesuffix(".bin") + ".offsets.npy"


@dataclass
class Split:
    """The shards of one split; `bytes` is the UTF-8 size of the text, end-of-text tokens not counted."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict) -> Split:
        """Reads what `dataclasses.asdict` wrote."""
        return cls(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})

    def as_dict(self) -> dict:
        """For meta.json."""
        return asdict(self)


class ShardWriter:
    """Appends documents of one split to shard files of about `shard_tokens` tokens; a document is never cut.

    finished: the shards that an earlier writer has finished, to go on after. A shard has its name only when all of it
    is on disk; `closed` is told of each.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vocab_size: int,
        shard_tokens: int,
        finished: Split | None = None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.name, self.shard_tokens, self.closed = folder, name, shard_tokens, closed
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.split = finished or Split()
        self._begin()

    def add(self, tokens: np.ndarray, lengths: np.ndarray, n_bytes: np.ndarray) -> None:
        """Documents one after another, each closed by its end-of-text token.

        tokens: all of them in a row; lengths: int64 (n,), tokens of each; n_bytes: int64 (n,), UTF-8 bytes of each.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        done = 0
        while done < len(lengths):
            before = int(ends[done - 1]) if done else 0
            last = int(np.searchsorted(ends, before + self.shard_tokens - self._filled))  # which fills the shard
            n = min(last + 1, len(lengths)) - done
            piece = np.ascontiguousarray(tokens[before : ends[done + n - 1]], self.dtype)
            self._file().write(piece.data)
            self._sha256.update(piece.data)
            self._offsets.append(self._filled + ends[done : done + n] - lengths[done : done + n] - before)
            self._filled += len(piece)
            self._bytes += int(n_bytes[done : done + n].sum())
            done += n
            if self._filled >= self.shard_tokens:
                self._close_shard()

    def close(self) -> Split:
        """Writes what is left and returns the finished split."""
        if self._filled:
            self._close_shard()
        return self.split

    def abandon(self) -> None:
        """Leaves the shard that has been begun unfinished."""
        if self._open is not None:
            self._open.close()

    def _begin(self) -> None:
        self._open: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._offsets: list[np.ndarray] = []
        self._filled = self._bytes = 0

    def _file(self) -> BinaryIO:
        if self._open is None:
            self._open = (self.folder / f".{self.name}.part").open("wb")
        return self._open

    def _close_shard(self) -> None:
        offsets = np.concatenate(self._offsets).astype("<u8")
        shard = Shard(f"{self.name}-{len(self.split.shards):05d}.bin", self._filled, len(offsets), "", "")
        shard.sha256 = self._sha256.hexdigest()
        np.save(self.folder / shard.offsets_file, offsets)
        shard.offsets_sha256 = file_checksum(self.folder / shard.offsets_file)
        file = self._file()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self.folder / f".{self.name}.part", self.folder / shard.file)
        self.split.shards.append(shard)
        self.split.tokens += shard.tokens
        self.split.documents += shard.documents
        self.split.bytes += self._bytes
        self._begin()
        self.closed()


class TokenStream:
    """The shards of a split as one long sequence of tokens, read where it lies, by any number of threads.

    locate: where a shard's file lies; it may take its time. None: in `folder`.
    most_open: so many shards are mapped at once, those read last (None: all of them); each that is let go is told to
    `dropped`.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        vocab_size: int,
        locate: Callable[[Shard], Path] | None = None,
        most_open: int | None = None,
        dropped: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        self.split = split
        self._dtype = token_dtype(vocab_size)
        self._locate = locate or (lambda shard: folder / shard.file)
        self._most_open, self._dropped = most_open, dropped
        self._ends = np.cumsum([s.tokens for s in split.shards])
        self._maps: dict[int, np.ndarray] = {}  # by shard, those read last at the end
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.split.tokens

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in a shard."""
        return np.dtype(self._dtype).itemsize

    def read(self, start: int, n_token: int) -> np.ndarray:
        """Tokens start .. start + n_token as int64, across shard borders."""
        if not 0 <= start <= start + n_token <= len(self):
            raise IndexError(f"tokens {start}..{start + n_token} of {len(self)}")
        found = np.empty(n_token, np.int64)
        done, shard = 0, int(np.searchsorted(self._ends, start, side="right"))
        while done < n_token:
            tokens = self._map(shard)
            offset = start + done - (int(self._ends[shard]) - len(tokens))
            piece = tokens[offset : offset + n_token - done]
            found[done : done + len(piece)] = piece
            done, shard = done + len(piece), shard + 1
        return found

    def _map(self, number: int) -> np.ndarray:
        if self._most_open is None:
            tokens = self._maps.get(number)
        else:
            with self._lock:
                if (tokens := self._maps.pop(number, None)) is not None:
                    self._maps[number] = tokens
        return self._open(number) if tokens is None else tokens

    def _open(self, number: int) -> np.ndarray:
        """The lock is not held meanwhile: others read on while a shard is fetched."""
        shard = self.split.shards[number]
        for _ in range(OPEN_TRIES):
            path = self._locate(shard)
            try:
                # asarray: slices of a plain array are made faster
                tokens = np.asarray(np.memmap(path, dtype=self._dtype, mode="r", shape=(shard.tokens,)))
                break
            except FileNotFoundError:  # another process that shares the cache may have needed the room
                pass
        else:
            raise UserError(f"token shard {path} is missing: it was removed while it was in use")
        with self._lock:
            self._maps[number] = tokens
            while self._most_open is not None and len(self._maps) > self._most_open:
                oldest = next(iter(self._maps))
                del self._maps[oldest]
                self._dropped(self.split.shards[oldest])
        return tokens


def token_dtype(vocab_size: int) -> str:
    """The narrowest little-endian type that holds every token number."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def verify(folder: Path, shards: Iterable[Shard], vocab_size: int) -> None:
    """UserError names the first shard that is missing, truncated or altered.

    Every file is read once; a later call reads only those whose size or time of change differ from what verified.json
    says of them. What changes bytes without touching the time (a failing disk) is found by removing that file.
    """
    remedy = f"delete {folder} to prepare the corpus again"
    known = _read_stamp(folder)
    news = False
    for shard in shards:
        path = folder / shard.file
        expected = shard.tokens * np.dtype(token_dtype(vocab_size)).itemsize
        if not path.is_file():
            raise UserError(f"token shard {path} is missing: {remedy}")
        if path.stat().st_size != expected:
            raise UserError(f"token shard {path} has {path.stat().st_size} bytes instead of {expected}: {remedy}")
        offsets = folder / shard.offsets_file
        for file, checksum in ((path, shard.sha256), (offsets, shard.offsets_sha256)):
            if not file.is_file():
                raise UserError(f"{file} is missing: {remedy}")
            entry = file_state(file) | {"sha256": checksum}
            if known.get(file.name) == entry:
                continue
            if file_checksum(file) != checksum:
                raise UserError(f"token shard {file} was altered after it was written (checksum differs): {remedy}")
            if time.time_ns() - entry["mtime_ns"] > SETTLED_NS:
                known[file.name] = entry
                news = True
    if news:
        with contextlib.suppress(OSError):  # the folder need not be writable
            replace_text(folder / STAMP_FILE, json.dumps(known, indent=1))


def _read_stamp(folder: Path) -> dict:
    try:
        stamp = json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def file_state(path: Path) -> dict:
    """What shows that a file was changed, without reading it."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def file_checksum(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
