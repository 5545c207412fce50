"""Files wherever they lie, on this machine or behind an fsspec URL: found, told apart, and read from front to back."""

from __future__ import annotations

import glob
import os
import time
from pathlib import PurePath
from typing import Any, BinaryIO

from gptstar.errors import UserError, reason

REMOTE_BLOCK_BYTES = 8 << 20  # asked of a server at a time
TIMEOUT_SECONDS = 60.0  # without a byte from a web server
RETRY_SECONDS = (1.0, 4.0, 16.0)  # waits before asking a server again for the rest

# What servers and fsspec's file systems call a checksum of the content, and the time of its last change.
_CHECKSUMS = ("ETag", "etag", "sha256", "checksum", "Content-MD5", "Digest", "md5Hash", "content_md5", "blob_id")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created")


def is_remote(path: str) -> bool:
    """Whether fsspec has to be asked for it."""
    return "://" in path


def find(pattern: str) -> dict[str, str]:
    """The files of a path, URL or glob, each with its stamp; a file whose very name it is comes before a glob.

    Sorted by name. Raises UserError for a server that does not answer; a pattern without a file gives none.
    """
    if is_remote(pattern) and not pattern.startswith("file://"):
        return _find_remote(pattern)
    pattern = os.path.expanduser(pattern.removeprefix("file://"))
    names = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    files = sorted((name for name in names if os.path.isfile(name)), key=lambda name: PurePath(name).parts)
    return {str(PurePath(name)): stamp(name) for name in files}


def stamp(path: str) -> str:
    """Changes whenever the file does, as far as that shows without reading it. UserError where there is none."""
    try:
        if is_remote(path):
            fs, name = _file_system(path)
            fs.invalidate_cache()
            return _remote_stamp(fs.info(name))
        status = os.stat(path)
    except UserError:
        raise
    except Exception as error:  # each file system has its own
        remedy = ": check the address" if is_remote(path) else ""
        raise UserError(f"{path} cannot be read: {root_reason(error)}{remedy}") from error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def tells_content(stamp: str) -> bool:
    """Whether a remote file's stamp holds more than its size."""
    return " " in stamp


class Source:
    """A file that is read from front to back, and must stay what it was when `stamp` was taken."""

    def __init__(self, path: str, stamp: str) -> None:
        self.path, self.stamp, self.position = path, stamp, 0
        size = stamp.split()[0]
        self.size = int(size) if size.isdigit() else None  # a server may not say
        self.file: BinaryIO | None = None
        self._block_bytes = REMOTE_BLOCK_BYTES
        self.check()
        self._open()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. A server that breaks off is asked again for the rest."""
        waits = iter(RETRY_SECONDS if is_remote(self.path) else ())
        while True:
            try:
                if self.file is None:
                    self._open()
                data = self.file.read(size)  # type: ignore[union-attr]
                if not data and self.size is not None and self.position < self.size:
                    raise EOFError(f"it ends before its {self.size} bytes")
                break
            except Exception as error:
                self.file = None
                if self._block_bytes and "range requests" in str(error):  # the server has no part of a file to give
                    self._block_bytes = 0
                    continue
                wait = None if isinstance(error, FileNotFoundError | UserError) else next(waits, None)
                if wait is None:
                    self.check()
                    raise UserError(
                        f"{self.path} cannot be read beyond its byte {self.position}: {root_reason(error)}"
                    ) from error
                time.sleep(wait)
        if not data:
            self.check()
        self.position += len(data)
        return data

    def check(self) -> None:
        """UserError if the file is gone or another than when it was listed."""
        try:
            now = stamp(self.path)
        except UserError as error:
            raise UserError(f"{error}: was it moved while it was read?") from error
        if now != self.stamp:
            raise UserError(f"{self.path} changed while it was read: leave it alone and start again")

    def _open(self) -> None:
        try:
            if is_remote(self.path):
                fs, name = _file_system(self.path)
                file = fs.open(name, "rb", block_size=self._block_bytes, cache_type="readahead")
                if self._block_bytes:
                    file.seek(self.position)
                else:
                    _skip(file, self.position)
                self.file = file
            else:
                self.file = open(self.path, "rb")  # noqa: SIM115
        except Exception as error:
            if self.position:
                raise
            raise UserError(f"{self.path} cannot be read: {root_reason(error)}") from error


def root_reason(error: BaseException) -> str:
    """What the innermost error says, in one line: the outer ones only say that something was not found."""
    while error.__cause__ is not None:
        error = error.__cause__
    if (status := getattr(error, "status", None)) and (said := getattr(error, "message", None)):  # of a web server
        return reason(f"HTTP {status} {said}")
    return reason(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _skip(file: BinaryIO, size: int) -> None:
    while size and (data := file.read(min(size, REMOTE_BLOCK_BYTES))):
        size -= len(data)


def _file_system(path: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {}
    try:
        if path.startswith(("http://", "https://")):
            import aiohttp  # what fsspec speaks HTTP with; its own limit is five minutes for a whole answer

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {root_reason(error)}") from error


def _find_remote(pattern: str) -> dict[str, str]:
    fs, name = _file_system(pattern)
    # As fsspec: ? begins the query of a web address.
    magic = "*[" if pattern.startswith(("http://", "https://")) else "*?["
    if not set(magic) & set(name):
        return {pattern: stamp(pattern)}
    try:
        if fs.isfile(name):
            return {pattern: stamp(pattern)}
        found = fs.glob(name, detail=True)
    except Exception as error:
        raise UserError(f"{pattern} cannot be listed: {root_reason(error)}") from error
    files = [path for path, info in sorted(found.items()) if info["type"] == "file"]
    # Asked one by one, as later again: a listing may know less of a file than the file's own answer.
    return {fs.unstrip_protocol(path): _remote_stamp(fs.info(path)) for path in files}


def _remote_stamp(info: dict) -> str:
    if info.get("type") == "directory":
        raise UserError(f"{info.get('name')} is a folder: name its files, for example with *")
    for keys in (_CHECKSUMS, _TIMES):
        for key in keys:
            if info.get(key):
                return f"{info.get('size')} {key}={info[key]}"
    return str(info.get("size"))
