"""Exact and near duplicates among any number of documents, in bounded memory.

The workers make a key and a signature of every document (`exact_key`, `signature`); when all are there, `find_exact`
and `find_near` say which documents repeat an earlier one. Documents are numbered through all arrays in their order.

Near duplicates are documents whose sets of word n-grams ("shingles") are alike: their Jaccard similarity, the share of
shingles that both have of those that either has, is estimated by MinHash (Broder 1997), and pairs worth comparing are
found by locality-sensitive hashing: signatures are cut into bands, and documents meet where they agree in a whole band
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gptstar.data.words import hash_ngrams, hash_words, mix

KEY = np.dtype([("high", "<u8"), ("low", "<u8")])
NEAR = np.dtype([("document", "<i8"), ("original", "<i8"), ("similarity", "<f4")])
SEED = 1  # of the signatures
FOUND = 0.9  # share of the pairs just at the threshold that share a band
MOST = 16  # documents of a bucket that its others are compared with
BLOCK = 1 << 13  # documents read at a time
ROWS = 1 << 9  # documents compared at a time, each with MOST others
_ROW_BYTES = 300  # that a row costs while equal keys are sought, measured
_PAIR_BYTES = 250  # that a pair costs while it is decided, measured
_DECIDED, _PRIOR, _REST, _OUT = 0, 1, 2, 3  # whose turn it is; the last: not compared (any more)


@dataclass
class NearConfig:
    """When two documents count as near duplicates.

    threshold      the Jaccard similarity of their shingles from which on the later one goes; 0 turns it off
    n_gram         words in a shingle (Lee et al., arXiv:2107.06499: 5); a shorter document is one shingle
    n_permutation  numbers in a signature, 4 bytes each: the similarity s is estimated to sqrt(s (1 - s) / this)
    """

    threshold: float = 0.8
    n_gram: int = 5
    n_permutation: int = 128

    def __post_init__(self) -> None:
        if not (self.threshold == 0 or 0.3 <= self.threshold <= 1):
            raise ValueError(
                f"data.near_duplicates.threshold={self.threshold} must lie between 0.3 and 1: 0 turns it off"
            )
        for key, least in (("n_gram", 1), ("n_permutation", 16)):
            if getattr(self, key) < least:
                raise ValueError(f"data.near_duplicates.{key}={getattr(self, key)} must be at least {least}")


def exact_key(text: str) -> bytes:
    """128 bits of blake2b: equal for equal texts alone. np.frombuffer(keys, KEY) makes an array of many."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def signature(texts: Sequence[str], config: NearConfig, words: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """The MinHash signatures of some texts, uint32 (len(texts), n_permutation); the same wherever they are made.

    words: what `hash_words` gives for the texts, where that is known already. A text shorter than n_gram words is one
    shingle, and one without any word is a shingle of its characters.

    The sketches are rensa's: one pass over the shingles, each of which enters the few places it falls on (fast
    similarity sketching, Dahlgaard et al., arXiv:1704.04370).
    """
    from rensa import RMinHash

    shingles = [
        hash_ngrams(known, config.n_gram)
        if len(known) >= config.n_gram
        else hash_ngrams(known, len(known))
        if len(known)
        else np.frombuffer(exact_key(text)[:8], np.uint64)
        for text, known in zip(texts, hash_words(texts) if words is None else words, strict=True)
    ]
    if not shingles:
        return np.empty((0, config.n_permutation), np.uint32)
    offsets = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(shingles), offsets, config.n_permutation, SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def find_exact(
    keys: Sequence[np.ndarray], n_memory: int = 1 << 29, priority: np.ndarray | None = None, decided: int = 0
) -> np.ndarray:
    """(document, the first one it equals) of every document that repeats an earlier one, int64 (k, 2), by document.

    keys: arrays (memory maps) of KEY. priority and decided: as in `find_near`. Memory: about n_memory bytes, 1 a
    document, and the result.
    """
    turns = _turns(sum(map(len, keys)), None, priority, decided)

    def read() -> Iterator[_Hashes]:
        return ((start, block["high"], block["low"]) for start, block in _blocks(keys))

    pairs = [np.empty((0, 2), np.int64)]
    for later, earlier in _meetings(read, turns, n_memory, 1):
        pairs.append(np.stack([later, earlier], 1))
    found = np.concatenate(pairs)
    return found[np.argsort(found[:, 0])]


def bands(threshold: float, n_permutation: int) -> tuple[int, int]:
    """(bands, rows of each): the longest bands with which pairs at the threshold still meet with probability FOUND.

    Documents of similarity s agree in some band with probability 1 - (1 - s^rows)^bands. Those that meet are compared,
    so that a false meeting costs time alone, and missing ones are what to avoid.
    """
    for rows in range(n_permutation, 1, -1):
        if 1 - (1 - threshold**rows) ** (n_permutation // rows) >= FOUND:
            return n_permutation // rows, rows
    return n_permutation, 1


def find_near(
    signatures: Sequence[np.ndarray],
    threshold: float,
    n_memory: int = 1 << 29,
    removed: np.ndarray | None = None,
    priority: np.ndarray | None = None,
    decided: int = 0,
    scratch: Path | None = None,
) -> np.ndarray:
    """Which documents go because they are near an earlier one that stays: an array of NEAR, by document.

    A document goes if some band of its signature and in all at least `threshold` of it agree with a document that comes
    before it and stays itself. The first such one is named as its original, or the first with the very same signature.
    So nothing goes for being like something that went (no chaining).

    signatures  arrays (memory maps) of uint32 (n, n_permutation)
    removed     bool, one a document: what has gone already counts for nothing and is not named again
    priority    bool, one a document: these come before all others that are not decided (held-out documents)
    decided     that many leading documents (of earlier corpora) come first of all and never go

    Documents with the same signature cost a comparison each. Of others that share a band, each is compared with the
    first MOST of them alone, so that a million variations on one form cost a million comparisons times MOST. What a
    pair misses so in the first band that it shares, it does not make up for in another.

    Memory: about n_memory bytes and 100 MB, 2 bytes a document, and the result. Disk: 8 bytes a document and band, and
    20 for each pair of near documents that met, in `scratch` (None: where temporary files go), gone when it is done.
    """
    turns = _turns(sum(map(len, signatures)), removed, priority, decided)
    if not len(turns):
        return np.empty(0, NEAR)
    n_band, n_row = bands(threshold, signatures[0].shape[1])
    with tempfile.TemporaryDirectory(dir=scratch) as folder, ExitStack() as stack:
        *hashes, high, low, pairs = (
            stack.enter_context(open(Path(folder) / f"{number}", "w+b")) for number in range(n_band + 3)
        )
        for _, block in _blocks(signatures):
            for band, file in enumerate(hashes):
                _hash_rows(block[:, band * n_row : (band + 1) * n_row], band).tofile(file)
            _hash_rows(block, n_band).tofile(high)
            _hash_rows(block, n_band + 1).tofile(low)
        same = _same_signatures(partial(_read_hashes, high, low), turns, n_memory)
        for band, file in enumerate(hashes):
            read = partial(_read_hashes, file)
            for rows in _near_pairs(signatures, read, turns, band, n_row, threshold, n_memory):
                rows.tofile(pairs)
        return _with_same(_decide(partial(_read, pairs, NEAR), turns, n_memory), same)


_Hashes = tuple[int, np.ndarray, np.ndarray]  # number of the first document, high and low half of some keys in a row


def _turns(n: int, removed: np.ndarray | None, priority: np.ndarray | None, decided: int) -> np.ndarray:
    """When each of n documents has its turn, uint8."""
    turns = np.full(n, _REST, np.uint8)
    if priority is not None:
        turns[priority] = _PRIOR
    turns[:decided] = _DECIDED
    if removed is not None:
        turns[removed] = _OUT
    return turns


def _blocks(arrays: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows) of all arrays in order, a few rows at a time."""
    first = 0
    for array in arrays:
        for start in range(0, len(array), BLOCK):
            yield first + start, np.asarray(array[start : start + BLOCK])
            _let_go([array])
        first += len(array)


def _let_go(arrays: Iterable[np.ndarray]) -> None:
    """Pages of read-only memory maps stay in the system's cache but count as this process's memory no more."""
    for array in arrays:
        if isinstance(array, np.memmap) and array.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def _read(file: BinaryIO, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The rows of a file, some at a time. Not mapped: what is mapped counts as memory used."""
    file.flush()
    start = 0
    while True:
        file.seek(start * dtype.itemsize)
        rows = np.fromfile(file, dtype, BLOCK)
        if not len(rows):
            return
        yield rows
        start += len(rows)


def _read_hashes(high: BinaryIO, low: BinaryIO | None = None) -> Iterator[_Hashes]:
    start, hashes = 0, np.dtype(np.uint64)
    for rows in zip(*(_read(file, hashes) for file in (high, low) if file is not None), strict=True):
        yield start, rows[0], rows[-1]
        start += len(rows[0])


def _meetings(
    read: Callable[[], Iterator[_Hashes]], turns: np.ndarray, n_memory: int, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later documents, earlier documents) of all pairs with the same key whose earlier one is among its first `most`.

    Earlier is who has its turn earlier, then who has the lower number. The later one is none that is decided. The keys'
    range is worked through in as many passes as keep the documents of one within n_memory; of what has the same key no
    more than `most` are kept, however many there are.
    """
    limit = max(1, n_memory // _ROW_BYTES)
    n_pass = -(-len(turns) // limit)
    present = [turn for turn in (_DECIDED, _PRIOR, _REST) if (turns == turn).any()]
    for number in range(n_pass):
        lowest, highest = (np.uint64((number + i) * 2**64 // n_pass - i) for i in (0, 1))
        kept = [np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64)]
        waiting: list[tuple[np.ndarray, ...]] = []
        n_waiting = 0
        for turn in present:
            for start, high, low in read():
                here = np.flatnonzero((high >= lowest) & (high <= highest) & (turns[start : start + len(high)] == turn))
                waiting.append((high[here], low[here], start + here))
                n_waiting += len(here)
                if n_waiting >= limit:
                    kept = yield from _meet(kept, waiting, turns, most)
                    waiting, n_waiting = [], 0
        if n_waiting:
            yield from _meet(kept, waiting, turns, most)


def _meet(
    kept: list[np.ndarray], waiting: list[tuple[np.ndarray, ...]], turns: np.ndarray, most: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, list[np.ndarray]]:
    """Yields the pairs that the waiting rows make with what comes before them; returns the rows to keep."""
    n_kept = len(kept[0])
    high, low, documents = (np.concatenate(columns) for columns in zip(kept, *waiting, strict=True))
    order = np.lexsort((low, high))  # stable: the earlier of equals stands first
    high, low, documents = high[order], low[order], documents[order]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    start = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    place = np.arange(len(order)) - start
    new = (order >= n_kept) & (turns[documents] != _DECIDED)
    for block in range(0, len(order), ROWS):
        rows = block + np.flatnonzero(new[block : block + ROWS] & (place[block : block + ROWS] > 0))
        partners = np.minimum(place[rows], most)
        later = np.repeat(rows, partners)
        which = np.arange(len(later)) - np.repeat(np.cumsum(partners) - partners, partners)
        if len(later):
            yield documents[later], documents[start[later] + which]
    stays = place < most
    return [high[stays], low[stays], documents[stays]]


def _hash_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit hash of each row of uint32 (n, k)."""
    found = np.full(len(rows), seed + 1, np.uint64)
    for column in rows.T:
        found = mix(found * np.uint64(0x9E3779B97F4A7C15) + column)
    return found


def _same_signatures(read: Callable[[], Iterator[_Hashes]], turns: np.ndarray, n_memory: int) -> np.ndarray:
    """NEAR: documents whose whole signature an earlier one has. They share its fate, so they are compared no more."""
    found = [np.empty(0, NEAR)]
    found.extend(_near(*pair, 1.0) for pair in _meetings(read, turns, n_memory, 1))
    same = np.concatenate(found)
    turns[same["document"]] = _OUT
    return same


def _near_pairs(
    signatures: Sequence[np.ndarray],
    read: Callable[[], Iterator[_Hashes]],
    turns: np.ndarray,
    band: int,
    n_row: int,
    threshold: float,
    n_memory: int,
) -> Iterator[np.ndarray]:
    """NEAR: the pairs that meet in a band and in none before it and are alike enough."""
    for later, earlier in _meetings(read, turns, n_memory, MOST):
        documents, places = np.unique(np.concatenate([later, earlier]), return_inverse=True)
        rows = _take(signatures, documents)
        same = rows[places[: len(later)]] == rows[places[len(later) :]]
        similarity = np.count_nonzero(same, axis=1) / same.shape[1]
        near = np.flatnonzero(similarity >= threshold)
        near = near[~same[near, : band * n_row].reshape(len(near), band, n_row).all(2).any(1)]
        yield _near(later[near], earlier[near], similarity[near])
        _let_go(signatures)


def _near(documents: np.ndarray, originals: np.ndarray, similarity: np.ndarray | float) -> np.ndarray:
    rows = np.empty(len(documents), NEAR)
    rows["document"], rows["original"], rows["similarity"] = documents, originals, similarity
    return rows


def _take(arrays: Sequence[np.ndarray], documents: np.ndarray) -> np.ndarray:
    """Rows of the arrays by their number through all of them."""
    ends = np.cumsum([len(array) for array in arrays])
    places = np.searchsorted(ends, documents, side="right")
    rows = np.empty((len(documents), *arrays[0].shape[1:]), arrays[0].dtype)
    for place in np.unique(places):
        here = places == place
        rows[here] = arrays[place][documents[here] - (ends[place] - len(arrays[place]))]
    return rows


def _decide(read: Callable[[], Iterator[np.ndarray]], turns: np.ndarray, n_memory: int) -> np.ndarray:
    """NEAR: of the documents in the pairs those that go, decided one after another, each once."""
    gone = bytearray(len(turns))
    found = [np.empty(0, NEAR)]
    sizes = np.zeros((_OUT, -(-len(turns) // BLOCK)), np.int64)  # pairs of a turn whose document is in a block
    for pairs in read():
        np.add.at(sizes, (turns[pairs["document"]], pairs["document"] // BLOCK), 1)
    for turn in (_PRIOR, _REST):
        for first, last in _ranges(sizes[turn], max(1, n_memory // _PAIR_BYTES)):
            some = [np.empty(0, NEAR)]
            for pairs in read():
                document = pairs["document"]
                inside = (document >= first * BLOCK) & (document < last * BLOCK) & (turns[document] == turn)
                some.append(pairs[inside])
            rows = np.concatenate(some)
            rows = rows[np.lexsort((rows["original"], turns[rows["original"]], rows["document"]))]
            goes = []
            both = zip(rows["document"].tolist(), rows["original"].tolist(), strict=True)
            for place, (document, original) in enumerate(both):
                if not gone[original] and not gone[document]:
                    gone[document] = 1
                    goes.append(place)
            found.append(rows[goes])
    return np.concatenate(found)


def _ranges(sizes: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of runs of blocks that hold at most `limit` pairs together, or are one block."""
    first, total = 0, 0
    for block, size in enumerate(sizes.tolist()):
        if total and total + size > limit:
            yield first, block
            first, total = block, 0
        total += size
    if total:
        yield first, len(sizes)


def _with_same(found: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Adds the documents that have the signature of an earlier one, which is their original or has gone for it."""
    found = np.sort(found, order="document")
    place = np.searchsorted(found["document"], same["original"])
    for start in range(0, len(same), BLOCK):
        here = slice(start, start + BLOCK)
        went = place[here] < len(found)
        went[went] = found["document"][place[here][went]] == same["original"][here][went]
        rows = same[here]
        for key in ("original", "similarity"):  # the one that it went for counts for them too
            rows[key][went] = found[key][place[here][went]]
    both = np.concatenate([found, same])
    return both[np.argsort(both["document"])]
