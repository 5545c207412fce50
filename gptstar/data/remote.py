"""A prepared corpus behind a URL: its shards come when they are needed, into a folder of bounded size.

    NAME             a whole file whose content was found right
    NAME.ok          what it looked like then, and (by its own time of change) when it was last asked for
    NAME.part(.json) the beginning of one; whoever asks for it next goes on from there
    NAME.lock        held (flock) by whoever works on NAME, and says how many bytes that will take

Any number of processes of one machine share the folder, on a disk of its own. A kill at any moment leaves parts and
free locks. The folder makes room by removing what was asked for longest ago; a file that somebody has mapped lives on
without its name until it is unmapped (Linux), and its disk space with it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread

import numpy as np

from gptstar.data.shards import SETTLED_NS, Shard, Split, TokenStream, file_checksum, file_state, token_dtype
from gptstar.data.transport import advance, within
from gptstar.errors import UserError
from gptstar.fetch import RETRY_SECONDS, TIMEOUT_SECONDS, discard, fetch
from gptstar.files import locked, replace_text

MOST_AHEAD = 16  # shards
SIDE_BYTES = 4096  # what the small files beside a shard take at most
WRONG_TRIES = 3  # a file that came whole and wrong may have been spoilt on its way
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class _File:
    """What to fetch. sha256 and size are None for the files that meta.json says nothing of."""

    name: str
    sha256: str | None = None
    size: int | None = None

    @property
    def cost(self) -> int:
        return (self.size or 0) + SIDE_BYTES


class _Wrong(UserError):
    """The file came whole and is not the one that was asked for."""


class _Stopped(Exception):
    """The cache was closed while its thread fetched."""


class ShardCache:
    """The files of the prepared corpus at `url`, which may be all that fsspec opens (http, file, s3, gs, hf, ...).

    folder: where they are kept, for this corpus alone. n_byte: how large it may get, at least two shards; a `text`
    counts as soon as it is there.
    token_bytes: the size of a token; `stream` sets it.
    timeout: seconds without a byte. waits: seconds between tries that bring nothing new. note: is told what goes wrong
    and is tried again.

    All methods raise UserError for what cannot be had or written, and may be called by any thread.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        n_byte: int,
        token_bytes: int = 2,
        timeout: float = TIMEOUT_SECONDS,
        waits: Sequence[float] = RETRY_SECONDS,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.url, self.folder, self.n_byte, self.token_bytes = url, folder, n_byte, token_bytes
        self._timeout, self._waits, self._note = timeout, waits, note
        self._change = Condition()  # guards what follows
        self._in_use: set[str] = set()
        self._asked: list[_File] = []
        self._to_do: deque[_File] = deque()
        self._closed = False
        self._thread: Thread | None = None
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)

    def text(self, name: str) -> bytes:
        """A small file (meta.json, tokenizer.json): fetched once, kept for good. No checksum is known of it."""
        self._bring(_File(_plain(name)))
        with self._writing():
            return (self.folder / name).read_bytes()

    def path(self, shard: Shard) -> Path:
        """Where a shard's tokens lie, their checksum found right; waits until they do.

        Another process that needs room may remove the file at once: open it, and where it is gone ask again.
        """
        return self._fitting(self._tokens(shard))

    def offsets(self, shard: Shard) -> Path:
        """As `path`, for the documents' starts."""
        header = 128  # of an .npy file
        return self._fitting(_File(_plain(shard.offsets_file), shard.offsets_sha256, header + 8 * shard.documents))

    def ahead(self, shards: Iterable[Shard]) -> None:
        """Fetches the first MOST_AHEAD of these shards, in this order, as far as there is room; returns at once.

        They replace those of the last call, and stay until another call leaves them out. What goes wrong is noted;
        `path` tries again and raises.
        """
        files = [self._tokens(shard) for shard in itertools.islice(shards, MOST_AHEAD)]
        for file in files:
            self._check_limit(file)
        with self._change:
            self._asked, self._to_do = files, deque(files)
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._work, name="shards ahead", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def stream(self, split: Split, vocab_size: int) -> TokenStream:
        """The tokens of a split; as many shards are open at once as the folder holds, less one that comes."""
        self.token_bytes = np.dtype(token_dtype(vocab_size)).itemsize
        files = [self._tokens(shard) for shard in split.shards]
        for file in files:
            self._check_limit(file)
        most = self.n_byte // max((file.cost for file in files), default=self.n_byte) - 1
        return TokenStream(self.folder, split, vocab_size, self._use, max(1, most), self._let_go)

    def close(self) -> None:
        """Ends the reading ahead; a part stays for the next time."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _tokens(self, shard: Shard) -> _File:
        return _File(_plain(shard.file), shard.sha256, shard.tokens * self.token_bytes)

    def _use(self, shard: Shard) -> Path:
        with self._change:
            self._in_use.add(shard.file)
        try:
            return self.path(shard)
        except BaseException:
            self._let_go(shard)
            raise

    def _let_go(self, shard: Shard) -> None:
        with self._change:
            self._in_use.discard(shard.file)
            self._to_do = deque(self._asked)  # there may be room now
            self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._to_do or self._closed)
                if self._closed:
                    return
                file = self._to_do.popleft()
            try:
                if not self._bring(file, ahead=True):
                    with self._change:
                        self._to_do.clear()  # until there is news: those behind it must not take its room
            except _Stopped:
                return
            except UserError as error:
                self._note(f"reading ahead: {error}")

    def _fitting(self, file: _File) -> Path:
        self._check_limit(file)
        self._bring(file)
        return self.folder / file.name

    def _check_limit(self, file: _File) -> None:
        if 2 * file.cost > self.n_byte:
            raise UserError(
                f"the cache {self.folder} may have {self.n_byte:,} bytes and {file.name} alone has {file.size:,}: it "
                f"needs room for two, give it at least {2 * file.cost:,}"
            )

    def _bring(self, file: _File, ahead: bool = False) -> bool:
        """Returns when the file is there. ahead: False where it has no room; not concerned with what others fetch."""
        while True:
            with self._writing(), locked(self._lock(file.name), patience=0 if ahead else None) as lock:
                if lock is None:
                    return True
                if self._is_whole(file):
                    os.utime(self._record(file.name))
                    return True
                if self._make_room(file, lock, ahead):
                    try:
                        self._download(file, ahead)
                    finally:
                        os.ftruncate(lock, 0)
                    return True
            if ahead:
                return False
            time.sleep(POLL_SECONDS)  # unlocked: two that wait for each other's parts to go would wait forever

    def _is_whole(self, file: _File) -> bool:
        """Whether the right content lies there; a wrong one is removed."""
        path = self.folder / file.name
        if not path.is_file():
            return False
        try:
            record = json.loads(self._record(file.name).read_text())
        except (OSError, ValueError):
            record = None
        if record == self._description(file):
            return True
        if file.sha256 is not None and file_checksum(path) == file.sha256:
            self._write_record(file)
            return True
        if file.sha256 is not None:
            self._note(f"{path} is not what was fetched: it was changed, and is fetched again")
        self._record(file.name).unlink(missing_ok=True)
        path.unlink()
        return False

    def _download(self, file: _File, ahead: bool) -> None:
        url, target = within(self.url, file.name), self.folder / file.name

        def show(done: int, total: int) -> None:
            if ahead and self._closed:
                raise _Stopped
            if file.size is not None and max(done, total) != file.size:
                raise _Wrong(f"it has {max(done, total):,} bytes instead of {file.size:,}")

        def note(text: str) -> None:
            self._note(f"{url}: {text}")

        def check(path: Path) -> None:
            if file.sha256 is not None and (found := file_checksum(path)) != file.sha256:
                raise _Wrong(f"expected sha256 {file.sha256}, found {found}")
            if file.name.endswith(".json"):
                try:
                    json.loads(path.read_bytes())
                except ValueError as error:
                    raise _Wrong(f"it is no JSON ({error})") from error

        for tried in range(1, WRONG_TRIES + 1):
            try:
                fetch(url, target, check, show, note, advance(url, self._timeout), self._waits)
                break
            except UserError as error:
                wrong = error if isinstance(error, _Wrong) else error.__cause__
                if not isinstance(wrong, _Wrong):
                    raise
                discard(target.with_name(f"{file.name}.part"))
                if tried == WRONG_TRIES:
                    raise UserError(
                        f"{url} is wrong, {tried} times: {wrong}: put the right file there, or if the corpus was "
                        f"prepared anew remove {self.folder}"
                    ) from error
                note(f"{wrong}: trying again")
        self._write_record(file)

    def _make_room(self, file: _File, lock: int, ahead: bool) -> bool:
        """Removes what is needed least until the file fits, and reserves its place; False where that has to wait.

        ahead: neither what is in use nor what is asked for ahead goes. For a file that is waited for these go last.
        """
        with self._change:
            ranks = dict.fromkeys((asked.name for asked in self._asked), 1) | dict.fromkeys(self._in_use, 2)
        with locked(self.folder / ".room"):
            total, waits, can_go = file.cost, False, []
            for name in {path.name.removesuffix(".lock") for path in self.folder.glob("*.lock")} - {file.name}:
                with locked(self._lock(name), patience=0) as free:
                    reserved = 0 if free is not None else _reserved(self._lock(name))
                    size = max(reserved, sum(_stat(path)[0] for path in self._files(name)))
                    total += size
                    waits |= free is None
                    if free is not None and name.endswith((".bin", ".npy")):
                        can_go.append((ranks.get(name, 0), _stat(self._record(name))[1], name, size))
            going = []
            for rank, _, name, size in sorted(can_go):
                if total > self.n_byte and not (ahead and rank):
                    going.append(name)
                    total -= size
            if total > self.n_byte:
                if waits or ahead:
                    return False
                raise UserError(
                    f"the cache {self.folder} may have {self.n_byte:,} bytes and {file.name} with what always stays "
                    f"needs {total:,}: give it more"
                )
            for name in going:
                with locked(self._lock(name), patience=0) as free:
                    if free is None:  # somebody was faster and may be using it
                        return False
                    for path in self._files(name):
                        path.unlink(missing_ok=True)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(file.cost).encode(), 0)
            return True

    def _description(self, file: _File) -> dict:
        return file_state(self.folder / file.name) | {"content": file.sha256 or within(self.url, file.name)}

    def _write_record(self, file: _File) -> None:
        # Dated back: what changes it within this tick of the disk's clock changes its time even so.
        settled = time.time_ns() - SETTLED_NS
        os.utime(self.folder / file.name, ns=(settled, settled))
        replace_text(self._record(file.name), json.dumps(self._description(file)))

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.ok"

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _files(self, name: str) -> list[Path]:
        """All that is kept for a file but its lock: once removed, one could hold it while another makes it anew."""
        names = (name, f"{name}.part", f"{name}.part.json", f".{name}.part.json.part", f"{name}.ok", f".{name}.ok.part")
        return [self.folder / name for name in names]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"the cache {self.folder} cannot be used ({reason}): make room there or name another folder"
            ) from error


def _reserved(lock: Path) -> int:
    text = lock.read_bytes()
    return int(text) if text.isdigit() else 0


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of change; zeros where there is nothing."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _plain(name: str) -> str:
    """The name, which the remote meta.json gave: it must not lead out of the folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{name!r} is no name of a shard: was the corpus's meta.json altered?")
    return name
