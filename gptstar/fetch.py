"""Fetches a large file over HTTP so that nothing that arrived is lost.

FILE.part        the beginning of the remote file
FILE.part.json   {"etag", "size"} of the remote file that is the beginning of: another one is not continued
FILE             appears by a rename when all of it is on disk
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gptstar.errors import UserError
from gptstar.files import replace_text

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0  # without a byte
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # waits between tries that bring nothing new; after the last one it ends
BUSY = (408, 429, 500, 502, 503, 504)

Show = Callable[[int, int], None]
Advance = Callable[[Path, Show], None]  # see `fetch`


class Dropped(Exception):
    """The connection broke, or the server is busy: worth another try."""


class Unreachable(Dropped):
    """There was no connection at all."""


@dataclass
class Version:
    """Which remote file: its strong ETag ("" where the server gives none) and size in bytes."""

    etag: str
    size: int


def fetch_visibly(url: str, target: Path, check: Callable[[Path], None]) -> None:
    """`fetch`, its progress shown on stderr."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(target.name), *columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, visible=not target.exists())
        fetch(
            url,
            target,
            check,
            show=lambda done, total: progress.update(task, completed=done, total=total),
            note=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        )


def fetch(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    show: Show,
    note: Callable[[str], None],
    advance: Advance | None = None,
    waits: Sequence[float] | None = None,
) -> None:
    """Brings `url` to `target`, going on from what an earlier call left; an existing `target` is left alone.

    check: is given the complete file before it gets its name, and raises UserError for a wrong one, which is removed.
    show: is told bytes on disk and bytes in all, again and again. note: is told why it tries once more.
    advance(part, show): one try to complete the part; raises Dropped where another may help. None: `request`.
    waits: seconds between tries that bring nothing new. None: RETRY_SECONDS, and no wait at all where the first try
    finds no server, for then somebody sits there and waits.
    Raises UserError where there is no network, the server refuses, the disk is full, or the answer stays incomplete
    however often it is asked for: FILE.part then keeps what has arrived.
    """
    if target.exists():
        try:
            check(target)
        except UserError as error:
            raise UserError(f"{error}: remove it to download it anew") from error
        return
    if advance is None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url} is no http address: check the address")
        advance = partial(request, url)
    patient, waits = waits is not None, RETRY_SECONDS if waits is None else waits
    part = target.with_name(f"{target.name}.part")
    most, vain = -1, 0
    for attempt in itertools.count():
        try:
            advance(part, show)
            break
        except Dropped as error:
            size = _size(part)
            most, vain = max(most, size), 1 if size > most else vain + 1
            if vain > len(waits) or (attempt == 0 and isinstance(error, Unreachable) and not patient):
                raise UserError(f"{url}: {error}{_remedy(part)}") from error
            note(f"{error}: trying again in {waits[vain - 1]:.0f} s")
            time.sleep(waits[vain - 1])
        except OSError as error:
            raise UserError(f"{part} cannot be written ({error.strerror}){_remedy(part)}") from error
    try:
        check(part)
    except UserError as error:
        discard(part)
        raise UserError(f"{url}: {error}: it was removed, check the address") from error
    os.replace(part, target)
    _version_file(part).unlink(missing_ok=True)


def request(url: str, part: Path, show: Show, timeout: float | None = None, mixed: bool = False) -> None:
    """One HTTP request. Returns when the part is complete; raises Dropped where another request may help.

    timeout: seconds without a byte; None: TIMEOUT_SECONDS. mixed: a part is continued without a strong ETag too: only
    for a file whose check finds out if its end belongs to another version than its beginning.
    """
    known = _read_version(part, mixed)
    start = _size(part) if known else 0
    if known and start == known.size:
        return  # killed between the last byte and the rename
    headers = {"User-Agent": "gptstar", "Accept-Encoding": "identity"}
    if known and start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": known.etag} if known.etag else {})
    with _open(url, part, headers, TIMEOUT_SECONDS if timeout is None else timeout) as response:
        etag = response.headers.get("ETag", "")
        if response.status == 206 and known:
            found = response.headers.get("Content-Range")
            if found != f"bytes {start}-{known.size - 1}/{known.size}" or (known.etag and etag not in ("", known.etag)):
                discard(part)
                raise Dropped(f"the server sent {found} of {etag} instead of the rest")
        else:  # all of it: nothing was here, the remote file changed, or the server knows no ranges
            if response.length is None:
                raise UserError(f"{url}: the server does not say how long the file is: a truncated one would not show")
            start, known = 0, Version("" if etag.startswith("W/") else etag, response.length)
            part.write_bytes(b"")
            replace_text(_version_file(part), json.dumps(asdict(known)))
        append(_chunks(response), part, start, known.size, show)
    size = _size(part)
    if size > known.size:
        discard(part)
        raise UserError(f"{part} grew beyond the {known.size:,} bytes of {url}: is it being downloaded twice at once?")
    if size < known.size:
        raise Dropped(f"the answer ended after {size:,} of {known.size:,} bytes")


def append(chunks: Iterable[bytes], part: Path, size: int, total: int, show: Show) -> None:
    """Adds what comes to a part of `size` bytes, all of it on disk at the end; UserError where the disk lacks room."""
    free = shutil.disk_usage(part.parent).free
    if free < total - size:
        raise UserError(
            f"{part.parent} has {free:,} bytes free and {part.name} needs {total - size:,} more: free some, "
            "or choose another folder"
        )
    with part.open("ab") as file:
        try:
            show(size, total)
            for chunk in chunks:
                file.write(chunk)
                size += len(chunk)
                show(size, total)
        finally:
            file.flush()
            os.fsync(file.fileno())


def discard(part: Path) -> None:
    """Removes a part and what is noted about it."""
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _open(url: str, part: Path, headers: dict[str, str], timeout: float) -> HTTPResponse:
    try:
        return urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {error.reason}"
        if error.code == 416:  # it has less than is here
            discard(part)
        elif error.code not in BUSY:
            raise UserError(f"{url}: {answer}: is it still published there? check the address") from error
        raise Dropped(answer) from error
    except URLError as error:
        raise Unreachable(f"no connection ({error.reason}): check the network and the address") from error
    except (ValueError, InvalidURL) as error:
        raise UserError(f"{url} is no http address ({error}): check the address") from error
    except (OSError, HTTPException) as error:
        raise Dropped(f"the connection broke ({error})") from error


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise Dropped(f"the connection broke ({error})") from error
        if not chunk:
            return
        yield chunk


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _remedy(part: Path) -> str:
    size = _size(part)
    return f"; {part} keeps {size:,} bytes, the same command goes on from there" if size else ""


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path, mixed: bool) -> Version | None:
    """What the part is the beginning of, or None where that cannot be told (`mixed`: need not be)."""
    try:
        version = Version(**json.loads(_version_file(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return version if (version.etag or mixed) and _size(part) <= version.size else None
