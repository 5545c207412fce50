"""Bytes of files into memory, past the page cache where the system can: large aligned reads, several under way."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gptstar.errors import UserError
from gptstar.offload.places import Place

PAGE = 4096  # what direct reads are aligned to
CHUNK = 1 << 23  # bytes of one read
GAP = 1 << 20  # what lies between two tensors and is less than this is read along
THREADS = 4  # reads under way
# Shared memory, which mmap gives otherwise, is not made of huge pages.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


@dataclass(frozen=True)
class Span:
    """A part of a file that is read in one go, and where in a buffer it goes. All three are multiples of PAGE."""

    file: Path
    start: int
    length: int
    at: int
    needed: int  # bytes of it that must be there; the file may end then


class Extent:
    """The spans that hold some tensors, and where in the buffer each tensor is then."""

    def __init__(self, places: Iterable[Place]) -> None:
        self.spans: list[Span] = []
        self._at: dict[Place, int] = {}
        self.n_byte = 0
        group: list[Place] = []
        for place in sorted(set(places), key=lambda p: (str(p.file), p.offset)):
            if group and (place.file != group[0].file or place.offset > max(p.end for p in group) + GAP):
                self._close(group)
                group = []
            group.append(place)
        if group:
            self._close(group)

    def _close(self, group: list[Place]) -> None:
        start, end = group[0].offset // PAGE * PAGE, max(place.end for place in group)
        length = -(-(end - start) // PAGE) * PAGE
        self.spans.append(Span(group[0].file, start, length, self.n_byte, end - start))
        for place in group:
            self._at[place] = self.n_byte + place.offset - start
        self.n_byte += length

    def tensor(self, place: Place, buffer: Tensor) -> Tensor:
        """A tensor of it, as a view of the buffer (uint8) where its numbers lie aligned."""
        raw = buffer[self._at[place] : self._at[place] + place.n_byte]
        return place.view(raw if raw.storage_offset() % place.dtype.itemsize == 0 else raw.clone())


def new_buffer(n_byte: int) -> Tensor:
    """uint8 memory that begins on a page, and takes none until it is written; in huge pages where there are some."""
    memory = mmap.mmap(-1, max(n_byte, PAGE), **PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class Disk:
    """Reads extents in the background. `close` it, or use it as a context.

    direct: past the page cache where the file system allows it; what has been read is not kept by the system then.
    """

    def __init__(self, direct: bool = True, threads: int = THREADS) -> None:
        self.direct = direct and hasattr(os, "O_DIRECT")
        self.n_byte = 0  # read so far
        self._files: dict[tuple[Path, bool], int] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "reading")

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, extent: Extent, buffer: Tensor) -> list[Future[None]]:
        """Begins to read an extent into a buffer; all of it is there once the futures are done (`finish`)."""
        memory = memoryview(cast(Any, buffer.numpy()))
        futures = []
        for span in extent.spans:
            for skip in range(0, span.length, CHUNK):
                part = memory[span.at + skip : span.at + min(skip + CHUNK, span.length)]
                futures.append(self._pool.submit(self._read, span, skip, part))
        return futures

    def read(self, extent: Extent, buffer: Tensor) -> None:
        """The same, and waits. Raises UserError for a file that is shorter than it was, or cannot be read."""
        finish(self.start(extent, buffer))

    def _read(self, span: Span, skip: int, part: memoryview) -> None:
        direct, done, needed = self.direct, 0, min(len(part), span.needed - skip)
        try:
            while done < needed:
                try:
                    got = os.preadv(self._open(span.file, direct), [part[done:]], span.start + skip + done)
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    direct = False  # this file system knows no direct reads, or the last one ended within a page
                    continue
                if not got:
                    raise UserError(f"{span.file} has become shorter than it was: fetch it again")
                done += got
                direct = direct and done % PAGE == 0
        except OSError as error:
            raise UserError(f"{span.file} cannot be read: {error.strerror or error}") from error
        with self._lock:
            self.n_byte += done

    def _open(self, path: Path, direct: bool) -> int:
        with self._lock:
            if (path, direct) not in self._files:
                try:
                    self._files[path, direct] = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    self._files[path, direct] = os.open(path, os.O_RDONLY)
            return self._files[path, direct]

    def close(self) -> None:
        """Ends what is under way and closes the files."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for number in self._files.values():
            os.close(number)
        self._files.clear()


def finish(futures: list[Future[None]]) -> None:
    """Waits for reads; raises what went wrong."""
    for future in futures:
        future.result()
