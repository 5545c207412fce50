"""The words of texts as numbers, for comparing texts: 64-bit hashes of words and of n-grams, vectorised.

A word is an unbroken run of letters and digits (Python's str.isalnum), compared without case, each character by the
first of its case-folded form; everything else only separates words. So "Don't  stop!" and "don t\\nSTOP" are the same
words. Texts written without spaces have clauses where others have words.

The hash of a word is a polynomial over a random number a character, modulo 2^64, mixed (Karp & Rabin 1987). It depends
on nothing but the word: not on the process, the machine or Python's hash seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

PIECE = 1 << 17  # characters hashed at a time: arrays of 1 MB, which stay in the processor's cache
_BASE = 0x9E3779B97F4A7C13  # of the polynomials; odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al., 2014) of uint64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def code_points(text: str) -> np.ndarray:
    """The characters of a text as uint8 (ASCII) or uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def hash_words(texts: Sequence[str]) -> list[np.ndarray]:
    """The hashes of each text's words in order, a uint64 array a text. Many short texts at once are cheaper."""
    joined = "\n".join(texts)
    starts, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for at, piece in _pieces(joined):
        first, found = _hash_piece(piece)
        starts.append(first + at)
        hashes.append(found)
    begins = np.cumsum([0] + [len(text) + 1 for text in texts[:-1]])
    cuts = np.searchsorted(np.concatenate(starts), begins[1:])
    return np.split(np.concatenate(hashes), cuts) if texts else []


def hash_ngrams(words: np.ndarray, n: int) -> np.ndarray:
    """The hash of every n words in a row, uint64 (len(words) - n + 1,), none where there are fewer."""
    n_gram = max(0, len(words) - n + 1)
    sums = np.zeros(n_gram, np.uint64)
    for offset in range(n):
        sums *= np.uint64(_BASE)
        sums += words[offset : offset + n_gram]
    return mix(sums + np.uint64(n))


def hash_ngrams_at(words: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """hash_ngrams(words, n)[places], where only few are wanted."""
    sums = np.zeros(len(places), np.uint64)
    for offset in range(n):
        sums *= np.uint64(_BASE)
        sums += words[places + offset]
    return mix(sums + np.uint64(n))


def _hash_piece(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts and its hash."""
    values = np.take(_characters(), code_points(text))
    inside = np.zeros(len(values) + 2, np.int8)
    np.not_equal(values, 0, out=inside[1:-1].view(np.bool_))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    up, down = _powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * up[: len(values)], out=sums[1:])
    return starts, mix((sums[ends] - sums[starts]) * down[starts])


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(start, piece) of about PIECE characters each; a word is cut only where it is longer than that itself."""
    start = 0
    while start < len(text):
        end = start + PIECE
        while end < min(len(text), start + 2 * PIECE) and text[end].isalnum():
            end += 1
        yield start, text[start:end]
        start = end


@cache
def _characters() -> np.ndarray:
    """A random odd number for each code point that belongs to words, the same for both cases; 0 for all others."""
    table = np.zeros(0x110000, np.uint64)
    words = [(point, ord(char.casefold()[0])) for point in range(0x110000) if (char := chr(point)).isalnum()]
    points, folded = np.array(words).T
    table[points] = mix(folded.astype(np.uint64) + np.uint64(1)) | np.uint64(1)
    return table


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """base^0, base^1, ... and their inverses, modulo 2^64, enough for any piece."""
    up, down = np.ones(2 * PIECE, np.uint64), np.ones(2 * PIECE, np.uint64)
    up[1:], down[1:] = _BASE, _INVERSE
    return np.cumprod(up), np.cumprod(down)
