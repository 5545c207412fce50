"""Corpora of so few documents that a hash may leave all of them on one side: the end of each is held out instead."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from gptstar.data.cache import key_of
from gptstar.data.corpora import Corpus
from gptstar.data.worker import cleaner, hash_share
from gptstar.errors import UserError
from gptstar.files import replace_text

FEW = 100  # documents, of which at 5% all come to lie on one side once in 170 times


def is_too_small(corpus: Corpus, clean: str, share: float, memory: Path) -> bool:
    """Whether a corpus has FEW documents at most, and choosing `share` of them by their hashes leaves a side empty.

    It depends on the corpus alone, so that others may join it in a mixture. memory: a JSON file that remembers what
    was found, for a book may be large; a damaged one is made anew.
    """
    if corpus.separate or not share:
        return False
    key = key_of([corpus.fingerprint, asdict(corpus.fields), clean, share])
    known = _read(memory)
    if key not in known:
        try:
            found = _on_one_side(corpus, clean, share)
        except UserError:
            return False  # whoever prepares it meets the same, and tells of it
        with suppress(OSError):  # several at once: only time is lost
            replace_text(memory, json.dumps(_read(memory) | {key: found}, indent=0))
        return found
    return known[key]


def _on_one_side(corpus: Corpus, clean: str, share: float) -> bool:
    n_document, sides = 0, set()
    for text in map(cleaner(clean), corpus.texts()):
        if text:
            n_document += 1
            sides.add(hash_share(text) < share)
            if n_document > FEW or len(sides) == 2:
                return False
    return n_document > 0


def _read(memory: Path) -> dict[str, bool]:
    try:
        return {str(key): bool(found) for key, found in json.loads(memory.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}
