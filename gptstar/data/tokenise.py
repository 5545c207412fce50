"""Pieces to parts: read here, prepared in worker processes, written as each part is full; nothing is done twice."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gptstar.data.corpora import Source
from gptstar.data.parts import Part, part_path
from gptstar.data.pool import Nobody, Workers
from gptstar.data.worker import Chunk, Recipe, reasons

PART_BYTES = 64_000_000  # of text
PART_BLOCKS = 64  # at most: what cannot be read has no text, but is listed
READERS = 4  # pieces that are read at a time: decompression is what one reader's speed is limited by
PLAIN_SECONDS = 15.0  # between lines where there is no terminal


def tokenise(
    sources: list[Source], recipe: Recipe, folder: Path, n_worker: int, tell: Tally, part_bytes: int | None = None
) -> list[list[Part]]:
    """The parts of each piece, in order; those that `folder` has already are not made again.

    n_worker: processes; 0: this one does the work. Memory is bounded: a few blocks in flight, and a part of each piece
    that is being read. Raises UserError for what cannot be read; what was finished before stays.
    """
    stems = [folder / stem for stem in stems_of(sources)]
    open_ends = [(s, stem) for s, stem in zip(sources, stems, strict=True) if not _whole(Part.found(stem))]
    for stem in stems:
        tell.begin(Part.found(stem))
    if open_ends:
        stop = threading.Event()
        n_reader = max(1, min(READERS, len(open_ends), n_worker))
        window = 2 + n_worker // n_reader
        pool = Workers(n_worker, recipe) if n_worker else Nobody(recipe)
        with pool as workers, ThreadPoolExecutor(n_reader, "reader") as readers:
            jobs = [
                readers.submit(_PieceReader(source, stem, workers, window, part_bytes or PART_BYTES, tell, stop).run)
                for source, stem in open_ends
            ]
            try:
                for job in as_completed(jobs):  # an error ends the others, however far they are
                    job.result()
            except BaseException:
                stop.set()
                readers.shutdown(cancel_futures=True)
                raise
    return [Part.found(stem) for stem in stems]


def stems_of(sources: list[Source]) -> list[str]:
    """What the names of each one's parts begin with: its content, and how many before it have the same."""
    seen: Counter[str] = Counter()
    stems = []
    for source in sources:
        content = f"{source.held_out:d} {source.fingerprint}"
        stems.append(hashlib.sha256(f"{content} {seen[content]}".encode()).hexdigest()[:20])
        seen[content] += 1
    return stems


def _whole(parts: list[Part]) -> bool:
    return bool(parts) and parts[-1].last


class _PieceReader:
    """One piece on its way."""

    def __init__(
        self,
        source: Source,
        stem: Path,
        workers: Workers | Nobody,
        window: int,
        part_bytes: int,
        tell: Tally,
        stop: threading.Event,
    ) -> None:
        self.source, self.stem, self.workers, self.window = source, stem, workers, window
        self.part_bytes, self.tell, self.stop = part_bytes, tell, stop
        self.parts = Part.found(stem)
        self.next_block = self.parts[-1].next_block if self.parts else 0
        self.chunks: list[Chunk] = []

    def run(self) -> None:
        """To the end of the piece, or until another one has failed."""
        pending: deque[Future[Chunk]] = deque()
        for block in self.source.piece.blocks(self.next_block):
            if self.stop.is_set():
                return
            pending.append(self.workers.submit(block))
            if len(pending) >= self.window:
                self._take(pending.popleft().result())
        while pending:
            self._take(pending.popleft().result())
        self._write(last=True)

    def _take(self, chunk: Chunk) -> None:
        if self.source.held_out:
            chunk.documents["held_out"] = True
        self.chunks.append(chunk)
        self.next_block += 1
        self.tell.more(chunk)
        if len(self.chunks) >= PART_BLOCKS or sum(c.n_byte for c in self.chunks) >= self.part_bytes:
            self._write(last=False)

    def _write(self, last: bool) -> None:
        path, chunk = part_path(self.stem, len(self.parts)), Chunk.joined(self.chunks)
        self.parts.append(Part.write(path, self.source.piece.name, chunk, self.next_block, last))
        self.chunks = []
        if last:
            self.tell.piece_done()


class Tally:
    """How far preparation is, for a person: documents, text, tokens and their rates."""

    def __init__(self, title: str, n_piece: int, console: Console) -> None:
        self.title, self.n_piece, self.console = title, n_piece, console
        self.pieces = self.documents = self.tokens = self.n_byte = 0
        self.removed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._began = self._printed = time.monotonic()
        self._own_bytes = self._own_tokens = 0  # of this process's time
        self._bar: Progress | None = None

    def begin(self, parts: list[Part]) -> None:
        """What was done before."""
        self.documents += sum(p.n_read for p in parts)
        self.tokens += sum(p.tokens for p in parts)
        self.n_byte += sum(p.n_byte for p in parts)
        self.pieces += _whole(parts)
        for part in parts:
            self.removed.update(part.reasons)

    def more(self, chunk: Chunk) -> None:
        """A block is done."""
        with self._lock:
            n_token = int(chunk.documents["tokens"].sum())
            self.documents += chunk.n_read
            self.tokens += n_token
            self.n_byte += chunk.n_byte
            self._own_bytes += chunk.n_byte
            self._own_tokens += n_token
            self.removed.update(reasons(chunk))
            now = time.monotonic()
            if self._bar is None and now - self._printed >= PLAIN_SECONDS:
                self._printed = now
                self.console.print(f"{self.title}: {self}", highlight=False, markup=False, soft_wrap=True)

    def piece_done(self) -> None:
        """The last part of a piece is written."""
        with self._lock:
            self.pieces += 1

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        gone = f", {sum(self.removed.values()):,} removed" if self.removed else ""
        speed = f"{self._own_bytes / 1e6 / seconds:.1f} MB/s, {self._own_tokens / 1e6 / seconds:.2f}M tokens/s"
        done = f"{self.pieces}/{self.n_piece} pieces, {self.documents:,} documents{gone}"
        return f"{done}, {self.tokens / 1e6:,.1f}M tokens, {speed}"

    @contextmanager
    def shown(self) -> Iterator[Tally]:
        """A line that keeps changing in a terminal; lines now and then elsewhere."""
        if not self.console.is_terminal:
            yield self
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[tally]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as self._bar:
            self._bar.add_task(self.title, total=None, tally=self)
            yield self
        self._bar = None
