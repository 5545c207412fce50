"""One try to bring more of a remote file, for `gptstar.fetch`: over HTTP, or any other protocol that fsspec knows."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

from gptstar.errors import UserError
from gptstar.fetch import CHUNK_BYTES, Advance, Dropped, Show, append, discard, request


def within(url: str, name: str) -> str:
    """The address of a file in a remote folder; what follows a `?` (a signature) stays last."""
    if not is_http(url):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def is_http(url: str) -> bool:
    """Such an address is asked directly, any other through fsspec."""
    return url.startswith(("http://", "https://"))


def advance(url: str, timeout: float) -> Advance:
    """Brings more of a file whose checksum is known, so that a part may be continued whatever happened to the file.

    timeout: seconds without a byte. Raises UserError for an address that nothing can be had from.
    """
    if is_http(url):
        return partial(request, url, timeout=timeout, mixed=True)
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {error}: is the address right?") from error
    return partial(_read_on, url, system, path, timeout)


def _read_on(url: str, system, path: str, timeout: float, part: Path, show: Show) -> None:
    start = part.stat().st_size if part.exists() else 0
    pieces = _pieces(system, path, start, timeout)
    try:
        total = next(pieces)
        if not isinstance(total, int):
            raise UserError(f"{url}: the server does not say how long the file is: a truncated one would not show")
        if start > total:
            discard(part)
            raise Dropped(f"the file has {total:,} bytes and {start:,} were here")
        append(pieces, part, start, total, show)
    except _Refused as error:
        raise UserError(f"{url}: {error}: check the address and who may read it") from error
    finally:
        pieces.close()
    if (size := part.stat().st_size) < total:
        raise Dropped(f"the answer ended after {size:,} of {total:,} bytes")
    if size > total:
        discard(part)
        raise Dropped(f"the answer went on after {total:,} bytes")


class _Refused(Exception):
    """Asking again does not help."""


def _pieces(system, path: str, start: int, timeout: float) -> Generator:
    """The size of a file, then its bytes from `start` on.

    Another thread reads them, for most protocols cannot be told how long to wait; one that hangs is left behind.
    """
    pieces: Queue = Queue(4)
    over = Event()
    Thread(target=_pump, args=(system, path, start, pieces, over), name="remote file", daemon=True).start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=timeout)
            except Empty:
                raise Dropped(f"nothing came for {timeout:g} s") from None
            if isinstance(piece, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise _Refused(piece.strerror or f"{type(piece).__name__} {piece}") from piece
            if isinstance(piece, Exception):
                raise Dropped(f"the connection broke ({type(piece).__name__}: {piece})") from piece
            if piece == b"":
                return
            yield piece
    finally:
        over.set()


def _pump(system, path: str, start: int, pieces: Queue, over: Event) -> None:
    def give(piece) -> None:
        while not over.is_set():
            try:
                pieces.put(piece, timeout=0.1)
                return
            except Full:
                pass

    try:
        with system.open(path, "rb") as file:
            give(system.size(path))
            file.seek(start)
            while not over.is_set() and (chunk := file.read(CHUNK_BYTES)):
                give(chunk)
        give(b"")
    except Exception as error:  # of whatever library the protocol needs: the other thread tells them apart
        give(error)
