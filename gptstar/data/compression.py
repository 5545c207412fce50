"""Compressed files as a stream of chunks, in bounded memory, and nothing that is broken passed over.

The standard library's file objects and zstandard's reader end without an error at a damaged second stream (xz, bz2) or
a cut-off frame (zst): here every byte belongs to a whole stream or is an error.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from gptstar.errors import UserError, reason

CHUNK_BYTES = 1 << 20  # plain files are read, and content handed on, in chunks of this size


class _Unit(Protocol):
    """One compressed stream (gzip calls it a member, zstd a frame), as lzma.LZMADecompressor."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._unit = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._unit.decompress(self._unit.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._unit.eof

    @property
    def unused_data(self) -> bytes:
        return self._unit.unused_data


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        # A window of more than 128 MB (zstd --long) costs that much memory, and there is no reading it without.
        self._unit = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._unit.decompress(data)  # knows no max_length: the reads are small instead

    @property
    def eof(self) -> bool:
        return self._unit.eof

    @property
    def unused_data(self) -> bytes:
        return self._unit.unused_data


# suffix -> (what reads one stream, compressed bytes read at a time: repetitive text shrinks to a 10,000th in zst)
COMPRESSIONS: dict[str, tuple[Callable[[], _Unit], int]] = {
    ".gz": (_Gzip, 1 << 17),
    ".xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), 1 << 17),
    ".zst": (_Zstd, 1 << 13),
    ".bz2": (bz2.BZ2Decompressor, 1 << 17),
}


def decompress(read: Callable[[int], bytes], suffix: str, name: str) -> Iterator[bytes]:
    """The content of what `read` gives, in chunks that are not empty.

    suffix: a key of COMPRESSIONS, or "" for none. Any number of streams one after the other is read whole, zeros
    after one are padding. UserError naming the file and how far it got for damaged or cut-off streams.
    """
    if not suffix:
        while chunk := read(CHUNK_BYTES):
            yield chunk
        return
    make, step = COMPRESSIONS[suffix]
    done, data = 0, read(step)
    while data:
        unit = make()
        while not unit.eof:
            try:
                chunk = unit.decompress(data, CHUNK_BYTES)
            except Exception as error:  # each library raises its own
                raise _broken(name, suffix, done, reason(error)) from error
            done += len(chunk)
            if chunk:
                yield chunk
            data = b""
            if len(chunk) < CHUNK_BYTES and not unit.eof:  # otherwise there may be more where that came from
                data = read(step)
                if not data:
                    raise _broken(name, suffix, done, "it ends in the middle")
        data = unit.unused_data.lstrip(b"\0")
        while not data and (more := read(step)):
            data = more.lstrip(b"\0")


def _broken(name: str, suffix: str, done: int, why: str) -> UserError:
    return UserError(f"{name}: broken {suffix[1:]} compression after {done} bytes of content ({why}): get it anew")


class Content:
    """Chunks as a file that can only be read on, which is all that tarfile and warcio need."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")
        self.position = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        parts = []
        while size and (self._rest or self._more()):
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            self.position += len(part)
            parts.append(part)
        return b"".join(parts)

    def _more(self) -> bool:
        self._rest = memoryview(next(self._chunks, b""))
        return bool(self._rest)

    def tell(self) -> int:
        """Bytes read so far."""
        return self.position
