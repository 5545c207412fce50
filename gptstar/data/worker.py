"""What becomes of a block of records: decoded, cleaned, filtered, compared, tokenised.

Every step looks at one document alone, so blocks can be done anywhere and in any order.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from gptstar.data.contamination import Contamination
from gptstar.data.duplicates import KEY, NearConfig, exact_key, signature
from gptstar.data.encode import Encoder
from gptstar.data.filters import FilterConfig, first_failure
from gptstar.data.reading import Block, Fields, Record, Unreadable, read_records
from gptstar.data.tokenizer import Tokenizer
from gptstar.data.words import hash_words
from gptstar.errors import UserError

_NO_WORDS = np.empty(0, np.uint64)
DOCUMENT = np.dtype([("record", "<u8"), ("tokens", "<u8"), ("bytes", "<u8"), ("held_out", "?")])


@dataclass(frozen=True)
class Recipe:
    """All that decides what becomes of a document.

    tokenizer      tokenizer.json's text
    held_out       share of the documents held out, by a hash of their text; None: whole pieces are
    ends           instead this share of each document, its end
    contamination  the file with the n-grams of evaluation texts; None: nobody looks for them
    """

    tokenizer: str
    eot_token: str
    fields: Fields
    held_out: float | None
    clean: str = "none"
    bad_records: str = "stop"
    filters: FilterConfig = field(default_factory=FilterConfig)
    exact_duplicates: bool = False
    near_duplicates: NearConfig = field(default_factory=lambda: NearConfig(threshold=0))
    contamination: Path | None = None
    remove_contaminated: bool = False
    ends: bool = False

    def values(self) -> dict[str, Any]:
        """As they go into a corpus's key: a setting that came later leaves the keys of older corpora alone."""
        values = asdict(self)
        return values if self.ends else {key: value for key, value in values.items() if key != "ends"}


@dataclass
class Chunk:
    """The documents of one or several blocks, in their order.

    documents     DOCUMENT (n,)
    tokens        all their token numbers, each document closed by end of text
    keys          KEY (n,), equal where texts are; signatures  uint32 (n, permutations); empty unless asked for
    removed       {"piece", "record", "reason", ...} for each that went
    contaminated  the same for those that share text with an evaluation set and stay
    """

    documents: np.ndarray
    tokens: bytes
    keys: np.ndarray
    signatures: np.ndarray
    removed: list[dict]
    contaminated: list[dict]
    n_read: int
    n_byte: int  # of text read, before cleaning

    @classmethod
    def joined(cls, chunks: list[Chunk]) -> Chunk:
        """Several as one."""
        if not chunks:
            return cls(np.empty(0, DOCUMENT), b"", np.empty(0, KEY), np.empty((0, 0), np.uint32), [], [], 0, 0)
        return cls(
            np.concatenate([c.documents for c in chunks]),
            b"".join(c.tokens for c in chunks),
            np.concatenate([c.keys for c in chunks]),
            np.concatenate([c.signatures for c in chunks]),
            [entry for c in chunks for entry in c.removed],
            [entry for c in chunks for entry in c.contaminated],
            sum(c.n_read for c in chunks),
            sum(c.n_byte for c in chunks),
        )


class Preparer:
    """Follows a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.clean = cleaner(recipe.clean)
        self.tokenizer = Tokenizer(FastTokenizer.from_str(recipe.tokenizer), recipe.eot_token)
        self.encoder = Encoder(self.tokenizer)
        self.end = np.array([self.tokenizer.eot_id], self.encoder.dtype).tobytes()
        self.contamination = None if recipe.contamination is None else Contamination.load(recipe.contamination)
        wanted = recipe.near_duplicates.threshold or recipe.filters.max_repeated_ngrams
        self.looks_at_words = bool(wanted or self.contamination)

    def process(self, block: Block) -> Chunk:
        """Raises UserError, naming piece and record, for what cannot be read, unless the recipe says to skip it."""
        recipe = self.recipe
        removed: list[dict] = []
        contaminated: list[dict] = []
        records: list[Record] = []
        n_read = n_byte = 0
        for record in read_records(block, recipe.fields):
            n_read += 1
            if isinstance(record, Unreadable):
                if recipe.bad_records == "stop":
                    raise UserError(f"{record.reason} (data.bad_records=skip leaves such records out)")
                removed.append(_entry(block, record.number, "unreadable", detail=record.reason))
                continue
            n_byte += len(record.text.encode())
            records.append(replace(record, text=self.clean(record.text)))
        words = hash_words([record.text for record in records]) if self.looks_at_words else None
        kept = []
        for place, record in enumerate(records):
            known = _NO_WORDS if words is None else words[place]
            looked = None if words is None else known
            reason = first_failure(record.text, recipe.filters, record.date, looked) if record.text else "empty"
            if reason is None:
                kept.append((record, known))
            else:
                removed.append(_entry(block, record.number, reason))
        if self.contamination is not None and kept:
            clean = []
            matches = self.contamination.find_all([record.text for record, _ in kept], [known for _, known in kept])
            for (record, known), found in zip(kept, matches, strict=True):
                if found:
                    most = max(found, key=lambda match: match.n_match)
                    entry = _entry(block, record.number, "contaminated", **asdict(most))
                    (removed if recipe.remove_contaminated else contaminated).append(entry)
                if not (found and recipe.remove_contaminated):
                    clean.append((record, known))
            kept = clean
        texts, numbers = [r.text for r, _ in kept], [r.number for r, _ in kept]
        chunk = self._halves(texts, numbers) if recipe.ends else self._chunk(texts, [w for _, w in kept], numbers)
        removed.sort(key=lambda entry: entry["record"])
        return replace(chunk, removed=removed, contaminated=contaminated, n_read=n_read, n_byte=n_byte)

    def _halves(self, texts: list[str], numbers: list[int]) -> Chunk:
        """Of each document what is trained on and what is held out, as two."""
        assert self.recipe.held_out is not None
        halves = [half for text in texts for half in cut_end(text, self.recipe.held_out)]
        there = [place for place, half in enumerate(halves) if half]
        texts, numbers = [halves[place] for place in there], [numbers[place // 2] for place in there]
        words = hash_words(texts) if self.recipe.near_duplicates.threshold else []
        chunk = self._chunk(texts, words, numbers)
        chunk.documents["held_out"] = [place % 2 for place in there]
        return chunk

    def _chunk(self, texts: list[str], words: list[np.ndarray], numbers: list[int]) -> Chunk:
        recipe = self.recipe
        encoded = self.encoder.encode(texts)
        documents = np.zeros(len(texts), DOCUMENT)
        documents["record"] = numbers
        size = np.dtype(self.encoder.dtype).itemsize
        documents["tokens"] = [len(tokens) // size + 1 for tokens in encoded]
        documents["bytes"] = [len(text.encode()) for text in texts]
        if recipe.held_out is not None:
            documents["held_out"] = [hash_share(text) < recipe.held_out for text in texts]
        keys = np.frombuffer(b"".join(map(exact_key, texts)) if recipe.exact_duplicates else b"", KEY)
        near = recipe.near_duplicates
        signatures = signature(texts, near, words) if near.threshold else np.empty((0, 0), np.uint32)
        tokens = b"".join(part for tokens in encoded for part in (tokens, self.end))
        return Chunk(documents, tokens, keys, signatures, [], [], 0, 0)


def cleaner(name: str) -> Callable[[str], str]:
    """What data.clean names."""
    if name == "ftfy":
        import ftfy

        return ftfy.fix_text
    return lambda text: text


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def cut_end(text: str, share: float) -> tuple[str, str]:
    """A text without its end, and the end: that share of its characters, or up to half as much again from the start
    of a line, or else of a word.

    The end is empty where there would be nothing to read in the one or the other.
    """
    length = len(text.rstrip())
    place = round(length * (1 - share))
    earliest = round(length * (1 - min(1.5 * share, 0.5 + share / 2)))  # so that something stays before it
    for mark in ("\n", " "):
        found = text.rfind(mark, earliest, place + 1) + 1
        if found:
            place = found
            break
    before, end = text[:place], text[place:]
    return (before, end) if before.strip() and end.strip() else (text, "")


def reasons(chunk: Chunk) -> Counter[str]:
    """How many documents went for which reason."""
    return Counter(entry["reason"] for entry in chunk.removed)


def _entry(block: Block, record: int, reason: str, **more: object) -> dict:
    piece = block.piece or block.raw[record - block.first][0]  # of many files each is named by itself
    return {"piece": piece, "record": record, "reason": reason, **more}


def _messages(stream: BinaryIO) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # at its end, or cut off by the end of who wrote it
            return


def main() -> None:
    """Answers every block on standard input, as pickles, until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land among the answers
    messages = _messages(requests)
    recipe = next(messages, None)
    if recipe is None:
        return
    preparer = Preparer(recipe)
    for block in messages:
        try:
            answer: tuple[str, object] = ("done", preparer.process(block))
        except UserError as error:
            answer = ("mistake", str(error))
        except Exception:
            answer = ("bug", traceback.format_exc())
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # nobody is left to hear it, nor what Python would say of it at its end
            os._exit(1)
