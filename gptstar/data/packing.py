"""How the documents of a split become windows of T tokens. No window crosses a shard.

Documents A (5 tokens) and B (2), each with its end-of-text E, T = 4; a window's targets, and what its inputs are:

    concatenated     A1 A2 A3 A4 | E  B0 B1 E            the stream cut wherever T tokens are full: inputs are the
                                                         targets' predecessors, the first token is never predicted
    best_fit         A0 A1 A2 A3 | A4 E  _  _ | ...      no document is cut that fits into a window; short ones and
                     E  A0 A1 A2   A3 A4                 remainders share one where they fit best, _ is padding

Best-fit packing is from Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830).
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gptstar.data.batches import document_numbers, read_windows, window_count
from gptstar.data.shards import Shard, Split, TokenStream
from gptstar.errors import UserError

IGNORED = -100  # the target of padding: nothing to predict
PLANS_IN_MEMORY = 16
PLANS_MAPPED = 128  # each is an open file


@dataclass(frozen=True)
class Batch:
    """Some windows, int64 (B, T) each: inputs, targets (IGNORED where there is none), and a number that tokens of one
    row share when they are of one document."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there, in order."""
        return [tensor for tensor in (self.inputs, self.targets, self.documents) if tensor is not None]

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with every tensor changed."""
        return Batch(*map(change, self.tensors))


@dataclass(frozen=True)
class Waste:
    """What a packing costs.

    tokens    of the split, each ended document's end-of-text among them
    unseen    of these, never a target
    padding   share of a batch's positions that hold nothing
    cut       share of documents that are not predicted whole within one window
    pieces    windows that a document is spread over, on average
    crossing  share of the (query, key) pairs of causal attention that lie in two documents, where no mask parts them
    """

    tokens: int
    unseen: int
    padding: float
    cut: float
    pieces: float
    crossing: float

    def __str__(self) -> str:
        return (
            f"{self.cut:.0%} of documents cut, into {self.pieces:.1f} pieces on average, {self.crossing:.0%} of "
            f"attention across documents, {self.padding:.2%} padding, {self.unseen:,} tokens left over"
        )


class Packing(Protocol):
    """Windows of a split, numbered shard by shard."""

    @property
    def windows_per_shard(self) -> np.ndarray:
        """int64, one a shard."""

    @property
    def n_window(self) -> int:
        """All of them."""

    def read(self, windows: np.ndarray, numbered: bool = True) -> Batch:
        """Some windows, as the model gets them; numbered: with their documents' numbers."""

    def segments(self, window: int) -> list[tuple[int, int, int]]:
        """What a window's targets are: of which document of the split, from which token of it, how many."""

    def waste(self) -> Waste:
        """Reads the documents' starts of all shards, one after another."""


class _Shards:
    """Where the shards of a split lie in its stream, and the starts of their documents."""

    def __init__(self, split: Split, locate: Callable[[Shard], Path]) -> None:
        self.split, self.locate_offsets = split, locate
        sizes = [s.tokens for s in split.shards]
        self.starts = np.cumsum([0, *sizes])
        self.documents_before = np.cumsum([0, *(s.documents for s in split.shards)])

    def offsets(self, shard: int) -> np.ndarray:
        """The first token of each document in a shard, int64, read where it lies."""
        file = self.locate_offsets(self.split.shards[shard])
        return np.load(file, mmap_mode="r").astype(np.int64, copy=False)

    def lengths(self, shard: int) -> np.ndarray:
        """Tokens of each document in a shard, its end-of-text among them."""
        return np.diff(self.offsets(shard), append=self.split.shards[shard].tokens)

    def locate(self, shard: int, token: int) -> tuple[int, int]:
        """The document of the split that a token of a shard is in, and its place there."""
        offsets = self.offsets(shard)
        document = int(np.searchsorted(offsets, token, side="right")) - 1
        return int(self.documents_before[shard]) + document, token - int(offsets[document])


class Concatenated:
    """The stream of each shard cut into windows of `length` targets, each preceded by its inputs' first token.

    offsets: the file with a shard's document starts; for `segments` and `waste` only.
    """

    def __init__(self, stream: TokenStream, length: int, eot_id: int, offsets: Callable[[Shard], Path]) -> None:
        self.stream, self.length, self.eot_id = stream, length, eot_id
        self._shards = _Shards(stream.split, offsets)
        self.windows_per_shard = np.array([window_count(s.tokens, length) for s in stream.split.shards], np.int64)
        self._firsts = np.cumsum(self.windows_per_shard) - self.windows_per_shard

    @property
    def n_window(self) -> int:
        return int(self.windows_per_shard.sum())

    def read(self, windows: np.ndarray, numbered: bool = True) -> Batch:
        shard, place = self._place(windows)
        inputs, targets = read_windows(self.stream, self._shards.starts[shard] + place, self.length)
        return Batch(inputs, targets, document_numbers(inputs, self.eot_id) if numbered else None)

    def segments(self, window: int) -> list[tuple[int, int, int]]:
        shard, place = (int(x[0]) for x in self._place(np.array([window])))
        first, stop = place + 1, place + 1 + self.length
        offsets = self._shards.offsets(shard)
        inside = offsets[np.searchsorted(offsets, first, side="right") : np.searchsorted(offsets, stop)]
        starts = [first, *inside.tolist()]
        ends = [*starts[1:], stop]
        return [(*self._shards.locate(shard, a), b - a) for a, b in zip(starts, ends, strict=True)]

    def waste(self) -> Waste:
        tally = _Tally(self.length)
        for shard, n_window in enumerate(self.windows_per_shard.tolist()):
            offsets, tokens = self._shards.offsets(shard), self.stream.split.shards[shard].tokens
            targets, of = _cut(offsets, 1, n_window, self.length)
            inputs, _ = _cut(offsets, 0, n_window, self.length)
            tally.add(targets, of, np.diff(offsets, append=tokens), n_window)
            tally.attend(inputs, np.full(n_window, self.length))
        return tally.waste()

    def _place(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each window and the first token in it that the window reads."""
        shard = _shard_of(windows, self.windows_per_shard)
        return shard, (windows - self._firsts[shard]) * self.length


class BestFit:
    """Each document as pieces of at most `length` targets, packed best-fit-decreasing into windows of as many.

    A piece's inputs are the tokens before its targets; before a document's first token that is the end-of-text of
    the one before. So every token of the split is a target once, and a whole document is read as E x0 x1 .. and
    predicted as x0 x1 .. E. `documents` numbers the pieces of a row, padding has a number of its own.

    offsets: the file with a shard's document starts.
    cache: where the plan of each shard is kept, and read from where it lies; a plan belongs to the offsets' checksum.
    Without it only the latest are kept, in memory.
    """

    def __init__(
        self,
        stream: TokenStream,
        length: int,
        eot_id: int,
        offsets: Callable[[Shard], Path],
        cache: Path | None = None,
    ) -> None:
        self.stream, self.length, self.eot_id, self.cache = stream, length, eot_id, cache
        self._shards = _Shards(stream.split, offsets)
        self._plans: OrderedDict[int, np.ndarray] = OrderedDict()  # the latest used ones
        self._checked: set[int] = set()

    @cached_property
    def windows_per_shard(self) -> np.ndarray:
        """int64; plans the shards that have not been planned yet."""
        plans = (self._plan(shard) for shard in range(len(self.stream.split.shards)))
        return np.array([int(plan[0, -1]) + 1 if plan.size else 0 for plan in plans], np.int64)

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.cumsum(self.windows_per_shard) - self.windows_per_shard

    @property
    def n_window(self) -> int:
        return int(self.windows_per_shard.sum())

    def read(self, windows: np.ndarray, numbered: bool = True) -> Batch:
        inputs = np.full((len(windows), self.length), self.eot_id, np.int64)
        targets = np.full_like(inputs, IGNORED)
        documents = np.empty_like(inputs)
        for row, (shard, pieces) in enumerate(self._pieces(windows)):
            begin, documents[row] = 0, len(pieces)
            for number, (start, size) in enumerate(pieces):
                end = begin + size
                # The shard's first token comes after no other here: the end-of-text already stands in its place.
                before = 1 if start else 0
                tokens = self.stream.read(int(self._shards.starts[shard]) + start - before, size + before)
                inputs[row, begin + 1 - before : end] = tokens[:-1]
                targets[row, begin:end] = tokens[before:]
                documents[row, begin:end] = number
                begin = end
        return Batch(*map(torch.from_numpy, (inputs, targets, documents)[: 2 + numbered]))

    def segments(self, window: int) -> list[tuple[int, int, int]]:
        ((shard, pieces),) = self._pieces(np.array([window]))
        return [(*self._shards.locate(shard, start), size) for start, size in pieces]

    def waste(self) -> Waste:
        tally = _Tally(self.length)
        for shard, n_window in enumerate(self.windows_per_shard.tolist()):
            window, start, size = (row.astype(np.int64) for row in self._plan(shard))
            of = np.searchsorted(self._shards.offsets(shard), start, side="right") - 1
            tally.add(size, of, self._shards.lengths(shard), n_window)
            tally.attend(size, np.bincount(window, size, n_window))
        return tally.waste()

    def _pieces(self, windows: np.ndarray) -> list[tuple[int, list[tuple[int, int]]]]:
        """The shard of each window, and the first token in it and the size of each of its pieces."""
        shards = _shard_of(windows, self.windows_per_shard)
        found: list = [None] * len(windows)
        for shard in np.unique(shards):  # one plan after another
            plan = self._plan(int(shard))
            rows = np.flatnonzero(shards == shard)
            window = (windows[rows] - self._firsts[shard]).astype(plan.dtype)
            begins, ends = (np.searchsorted(plan[0], window, side=side) for side in ("left", "right"))
            for row, begin, end in zip(rows, begins, ends, strict=True):
                found[row] = int(shard), list(zip(*plan[1:, begin:end].tolist(), strict=True))
        return found

    def _plan(self, shard: int) -> np.ndarray:
        """(3, pieces): the window of each piece, ascending, its first token in the shard, and its size."""
        if shard not in self._plans:
            self._plans[shard] = self._stored_plan(shard) if self.cache else self._make_plan(shard)
            if len(self._plans) > (PLANS_MAPPED if self.cache else PLANS_IN_MEMORY):
                self._plans.popitem(last=False)
        self._plans.move_to_end(shard)
        return self._plans[shard]

    def _stored_plan(self, shard: int) -> np.ndarray:
        assert self.cache is not None
        record = self.stream.split.shards[shard]
        name = f"{record.file.removesuffix('.bin')}.bestfit-{self.length}-{record.offsets_sha256[:16]}.npy"
        path = self.cache / name
        try:
            plan = np.asarray(np.load(path, mmap_mode="r"))
            if shard in self._checked or (plan.ndim == 2 and int(plan[2].sum(dtype=np.int64)) == record.tokens):
                self._checked.add(shard)
                return plan
        except (FileNotFoundError, ValueError, EOFError):
            pass
        plan = self._make_plan(shard)
        try:
            self._keep(plan, path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): data.packing=best_fit keeps its plans there; "
                "free some space, or choose another data.cache_dir"
            ) from error
        return np.asarray(np.load(path, mmap_mode="r"))

    def _keep(self, plan: np.ndarray, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )  # several ranks may plan
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, plan)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def _make_plan(self, shard: int) -> np.ndarray:
        offsets, lengths = self._shards.offsets(shard), self._shards.lengths(shard)
        n_piece = -(-lengths // self.length)
        number = np.arange(n_piece.sum()) - np.repeat(np.cumsum(n_piece) - n_piece, n_piece)  # of each in its document
        start = np.repeat(offsets, n_piece) + number * self.length
        size = np.minimum(self.length, np.repeat(offsets + lengths, n_piece) - start)
        window = best_fit(size, self.length)
        order = np.lexsort((start, window))
        narrow = np.uint32 if self.stream.split.shards[shard].tokens < 2**32 else np.int64
        return np.stack([window[order], start[order], size[order]]).astype(narrow)


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item, int64, by best-fit-decreasing: the largest first, each into the fullest bin it fits into.

    sizes: 1 .. capacity. Equal items go together: a bin that fits one best goes on to fit the next best, so all bins
    with the same room take as many as they hold at once. No step costs more than the items and the bins it moves.
    """
    bins = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    values, begins = np.unique(-sizes[order], return_index=True)
    free = [np.empty(0, np.int64) for _ in range(capacity + 1)]  # the bins with so much room left
    n_free = np.zeros(capacity + 1, np.int64)
    n_bin = 0
    for value, items in zip((-values).tolist(), np.split(order, begins)[1:], strict=True):
        while len(items):
            room = value + int((n_free[value:] > 0).argmax())
            fits = n_free[room] > 0
            each = (room if fits else capacity) // value
            wanted = -(-len(items) // each)
            if fits:
                some, free[room] = free[room][:wanted], free[room][wanted:]
                n_free[room] = len(free[room])
            else:
                room = capacity
                some = np.arange(n_bin, n_bin + wanted)
                n_bin += wanted
            placed = min(len(items), each * len(some))
            bins[items[:placed]] = np.repeat(some, each)[:placed]
            of_last = placed - each * (len(some) - 1)
            for left, these in ((room - each * value, some[:-1]), (room - of_last * value, some[-1:])):
                free[left] = np.concatenate([free[left], these])
                n_free[left] = len(free[left])
            items = items[placed:]
        n_free[0] = 0  # full
        free[0] = free[0][:0]
    return bins


def shorten(batch: Batch, length: int) -> Batch:
    """Each row of T tokens as T / length rows, for sequence-length warm-up: no token is lost or seen twice.

    Raises ValueError where `length` does not divide T.
    """
    if batch.inputs.shape[1] % length:
        raise ValueError(f"rows of {batch.inputs.shape[1]} tokens cannot be split into rows of {length}")
    return batch.each(lambda tensor: tensor.reshape(-1, length))


class _Tally:
    """Adds up a packing's waste, shard by shard."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.tokens = self.seen = self.windows = self.documents = self.cut = self.pieces = self.within = self.pairs = 0

    def add(self, sizes: np.ndarray, of: np.ndarray, lengths: np.ndarray, n_window: int) -> None:
        """The pieces that are predicted, the document of each, and the documents' lengths."""
        self.tokens += int(lengths.sum())
        self.seen += int(sizes.sum())
        self.windows += n_window
        self.documents += len(lengths)
        self.cut += len(lengths) - int((sizes == lengths[of]).sum())
        self.pieces += len(sizes)

    def attend(self, sizes: np.ndarray, filled: np.ndarray) -> None:
        """The pieces that attention sees apart with a mask, and what of each window is not padding."""
        self.within += int((sizes * (sizes + 1) // 2).sum())
        self.pairs += int((filled * (filled + 1) // 2).sum())

    def waste(self) -> Waste:
        return Waste(
            self.tokens,
            self.tokens - self.seen,
            1 - self.seen / max(1, self.windows * self.length),
            self.cut / max(1, self.documents),
            self.pieces / max(1, self.documents),
            1 - self.within / max(1, self.pairs),
        )


def _cut(offsets: np.ndarray, first: int, n_window: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces into which windows from token `first` on cut a shard's documents: their sizes and documents."""
    stop = first + n_window * length
    windows = first + length * np.arange(n_window)
    both = np.concatenate([windows, offsets[(offsets > first) & (offsets < stop)]])
    both.sort(kind="stable")  # merges the two
    starts = both[np.diff(both, prepend=-1) > 0]
    return np.diff(starts, append=stop), np.searchsorted(offsets, starts, side="right") - 1


def _shard_of(windows: np.ndarray, windows_per_shard: np.ndarray) -> np.ndarray:
    ends = np.cumsum(windows_per_shard)
    if len(windows) and not (windows.min() >= 0 and windows.max() < ends[-1]):
        raise IndexError(f"windows {windows.min()}..{windows.max()} of {ends[-1]}")
    return np.searchsorted(ends, windows, side="right")
