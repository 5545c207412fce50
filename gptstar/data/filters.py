"""Which documents are kept: by length, script, repetition and date. Each refusal has a short name to be counted by.

The rules are those of Gopher's MassiveText (Rae et al., arXiv:2112.11446, appendix A.1.1), of which a configuration
turns on what it wants. A new rule is a key of `FilterConfig` and a branch of `first_failure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

import numpy as np
import regex

from gptstar.data.words import code_points, hash_ngrams, hash_words

NGRAM = 5  # words; the shortest of Gopher's n-grams whose every repetition counts
_SPACE, _OTHER, _LETTER = 0, 1, 2


@dataclass
class FilterConfig:
    """What a document must be to be kept. 0 or null turns a rule off.

    min_chars            characters it has at least
    max_chars            characters it has at most
    min_letters          share of letters among its characters that are not white space
    script               only letters of this script count as letters: latin, cyrillic, greek, ... (Unicode's names)
    max_repeated_lines   share of its characters that lie in lines which occurred before in it (white space around
                         lines and empty lines do not count; Gopher: 0.2)
    max_repeated_ngrams  share of its words that lie in a run of 5 words which occurred before in it (Gopher: 0.15, of
                         characters)
    newer_than           a date: documents must be dated later than it. A day means its first moment, and what names no
                         time zone is in UTC; documents whose date is missing or cannot be read go
    """

    min_chars: int = 0
    max_chars: int = 0
    min_letters: float = 0.0
    script: str | None = None
    max_repeated_lines: float = 0.0
    max_repeated_ngrams: float = 0.0
    newer_than: str | None = None

    def __post_init__(self) -> None:
        for key in ("min_chars", "max_chars"):
            if getattr(self, key) < 0:
                raise ValueError(f"data.filters.{key}={getattr(self, key)} must not be negative: 0 turns it off")
        for key in ("min_letters", "max_repeated_lines", "max_repeated_ngrams"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"data.filters.{key}={getattr(self, key)} must lie between 0 and 1: 0 turns it off")
        if 0 < self.max_chars < self.min_chars:
            raise ValueError(f"data.filters.max_chars={self.max_chars} must be at least min_chars={self.min_chars}")
        if self.script and not self.min_letters:
            raise ValueError(f"data.filters.script={self.script!r} must come with data.filters.min_letters")
        if self.script:
            _kinds(self.script)
        if self.newer_than is not None and read_date(self.newer_than) is None:
            raise ValueError(f"data.filters.newer_than={self.newer_than!r} must be a date, such as 2018-12-31")


def first_failure(
    text: str, config: FilterConfig, date: str | None = None, words: np.ndarray | None = None
) -> str | None:
    """The short name of the first rule that a document breaks; None: it is kept.

    date: when it was written, as its corpus says; words: what `hash_words` gives for it, where that is known already.
    """
    if len(text) < config.min_chars:
        return "too short"
    if config.max_chars and len(text) > config.max_chars:
        return "too long"
    if config.newer_than is not None:
        newer = is_newer(date, config.newer_than)
        if not newer:
            return "no date" if newer is None else "too old"
    if config.min_letters and _letter_share(text, config.script) < config.min_letters:
        return "too few letters"
    if config.max_repeated_lines and _repeated_lines(text) > config.max_repeated_lines:
        return "repeated lines"
    if config.max_repeated_ngrams:
        words = hash_words([text])[0] if words is None else words
        if _repeated_ngrams(words) > config.max_repeated_ngrams:
            return "repeated n-grams"
    return None


def is_newer(date: str | None, limit: str) -> bool | None:
    """Whether a date is later than a limit; None where it is missing or cannot be read. ValueError for the limit."""
    bound, found = _read_limit(limit), None if date is None else read_date(date)
    return None if found is None else found > bound


def read_date(date: str) -> datetime | None:
    """A date as crawls write it, in UTC where it names no zone; None where it cannot be read.

    ISO 8601 (2019-01-03, 2019-01-03T10:00:00Z, 20190103) also down to the month or year only and with slashes or UTC,
    RFC 2822 as in HTTP headers (Thu, 03 Jan 2019 10:00:00 GMT), the 14 digits of web archives (20190103100000), and
    seconds or milliseconds since 1970.
    """
    date = date.strip()
    for read in (_iso, _archive, _unix, parsedate_to_datetime):
        try:
            found = read(date)
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _iso(date: str) -> datetime:
    if date.isdecimal() and len(date) not in (4, 8):
        raise ValueError(date)
    date = date.replace("/", "-").removesuffix("UTC").strip()
    if regex.fullmatch(r"\d{4}(-\d\d)?", date):
        date += "-01-01"[: 10 - len(date)]
    return datetime.fromisoformat(date)


def _archive(date: str) -> datetime:
    if not (date.isdecimal() and len(date) == 14):
        raise ValueError(date)
    return datetime.strptime(date, "%Y%m%d%H%M%S")


def _unix(date: str) -> datetime:
    seconds = float(date)
    if not abs(seconds) < 1e13:
        raise ValueError(date)  # beyond the year 2286
    return datetime.fromtimestamp(seconds / 1000 if abs(seconds) >= 1e11 else seconds, UTC)


@cache
def _read_limit(limit: str) -> datetime:
    bound = read_date(limit)
    if bound is None:
        raise ValueError(f"{limit!r} is no date")
    return bound


@cache
def _kinds(script: str | None) -> np.ndarray:
    """For each code point whether it is white space, a letter (of the script) or something else, uint8."""
    every = "".join(chr(p) if not 0xD800 <= p < 0xE000 else "\0" for p in range(0x110000))
    kinds = np.full(0x110000, _OTHER, np.uint8)
    try:
        letters = regex.compile(rf"[\p{{L}}&&\p{{Script={script}}}]+" if script else r"\p{L}+", regex.V1)
    except regex.error as error:
        raise ValueError(
            f"data.filters.script={script!r} must be a script that Unicode names, such as latin"
        ) from error
    for pattern, kind in ((letters, _LETTER), (regex.compile(r"\s+"), _SPACE)):
        for found in pattern.finditer(every):
            kinds[slice(*found.span())] = kind
    return kinds


def _letter_share(text: str, script: str | None) -> float:
    counts = np.bincount(np.take(_kinds(script), code_points(text)), minlength=3)
    return float(counts[_LETTER] / max(1, counts[_LETTER] + counts[_OTHER]))


def _repeated_lines(text: str) -> float:
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    once = set(lines)
    total = sum(map(len, lines))
    return 0.0 if len(once) == len(lines) else (total - sum(map(len, once))) / total


def _repeated_ngrams(words: np.ndarray) -> float:
    grams = hash_ngrams(words, NGRAM)
    ordered = np.sort(grams)
    if not (ordered[1:] == ordered[:-1]).any():  # most documents; sorting without the order is much faster
        return 0.0
    order = np.argsort(grams, kind="stable")
    again = order[1:][ordered[1:] == ordered[:-1]]  # the first of equals stands first
    covered = np.zeros(len(words), np.bool_)
    for offset in range(NGRAM):
        covered[again + offset] = True
    return float(covered.mean())
