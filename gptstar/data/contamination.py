"""Passages of evaluation sets in training text, by the n-grams of words that they share.

The rule is GPT-3's (Brown et al., arXiv:2005.14165, appendix C): a document is contaminated where 13 words in a row, in
lower case and without punctuation, stand in an evaluation set too. Evaluation texts shorter than that count as a whole.

What stands in both need not have leaked from one into the other: evaluation sets quote what everybody quotes (a
proverb, a licence, a list of numbers), and WikiText is Wikipedia. GPT-3 therefore ignored n-grams found in more than
ten documents. Here `min_matches` asks for more than one n-gram, and what was found is told with the passage, so that a
person can judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptstar.data.words import hash_ngrams, hash_ngrams_at, hash_words
from gptstar.errors import UserError, reason, valid_json
from gptstar.hub import offline_without_network

WORDS = re.compile(r"[^\W_]+")  # what gptstar.data.words takes for words
PASSAGE = 300  # characters of a passage that are told


def _lambada(record: dict[str, Any]) -> list[str]:
    return [record["text"]]


def _wikitext(record: dict[str, Any]) -> list[str]:
    return [record["page"]]


def _piqa(record: dict[str, Any]) -> list[str]:
    return [f"{record['goal']} {record[key]}" for key in ("sol1", "sol2")]


def _hellaswag(record: dict[str, Any]) -> list[str]:
    texts = (f"{record['ctx_a']} {record['ctx_b']} {ending}" for ending in record["endings"])
    return [re.sub(r"\[.*?\]", " ", text) for text in texts]  # WikiHow's marks, which no model is shown


def _winogrande(record: dict[str, Any]) -> list[str]:
    return [record["sentence"].replace("_", record[key]) for key in ("option1", "option2")]


@dataclass(frozen=True)
class Task:
    """An evaluation set: where lm-evaluation-harness 0.4.13 has it from, and the texts in one of its records."""

    dataset: str
    subset: str | None
    split: str
    texts: Callable[[dict[str, Any]], list[str]]


TASKS = {
    "lambada_openai": Task("EleutherAI/lambada_openai", "default", "test", _lambada),
    "wikitext": Task("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", _wikitext),
    "piqa": Task("baber/piqa", None, "validation", _piqa),
    "hellaswag": Task("Rowan/hellaswag", None, "validation", _hellaswag),
    "winogrande": Task("allenai/winogrande", "winogrande_xl", "validation", _winogrande),
}


def evaluation_texts(task: str, data_dir: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """(id, text) of everything a model is shown in an evaluation set, every choice in place.

    task: one of TASKS, read from DATA_DIR/TASK.jsonl with the set's own fields or, without data_dir, from the hub; or
    the path of a .jsonl file (every string in it is a text) or .txt file. Raises UserError for what cannot be read.
    """
    if task in TASKS:
        source = f"{task} of {TASKS[task].dataset}"
        if data_dir is not None:
            path = Path(data_dir).expanduser() / f"{task}.jsonl"
            source, records = str(path), _read_jsonl(path)
        else:
            records = _read_hub(task)
        for number, record in records:
            try:
                texts = TASKS[task].texts(record)
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{source}, record {number}: {error} is missing or not as in {task}: use the set's own fields"
                ) from error
            for choice, text in enumerate(texts):
                yield f"{number}.{choice}" if len(texts) > 1 else str(number), text
        return
    path = Path(task).expanduser()
    if path.suffix not in (".jsonl", ".txt"):
        known = ", ".join(TASKS)
        raise UserError(f"evaluation set {task!r} is unknown: choose one of {known}, or a .jsonl or .txt file")
    if path.suffix == ".txt":
        yield "1", _read_text(path)
        return
    for number, record in _read_jsonl(path):
        for choice, text in enumerate(_strings(record)):
            yield f"{number}.{choice}", text


@dataclass(frozen=True)
class Match:
    """What a document shares with an evaluation set.

    n_match: its n-grams that are in the set; share: of all its n-grams (of n words); passage: the first run of them, as
    it stands in the document.
    """

    task: str
    n_match: int
    share: float
    passage: str


class Contamination:
    """The n-grams of some evaluation sets, to look training text up in.

    n             words of an n-gram
    shortest      evaluation texts of fewer words than n but at least this many are looked for as a whole
    min_matches   n-grams of a set that a document must have to be told; a whole short text suffices too

    Small (about 11 bytes an n-gram) and picklable; `save` and `load` keep it in a file for the workers to read.
    """

    def __init__(
        self,
        texts: Mapping[str, Iterable[str]],
        n: int = 13,
        shortest: int = 8,
        min_matches: int = 1,
    ) -> None:
        if not 1 <= shortest <= n:
            raise ValueError(f"data.contamination.shortest={shortest} must lie between 1 and n={n}")
        if min_matches < 1:
            raise ValueError(f"data.contamination.min_matches={min_matches} must be at least 1")
        if len(texts) > 255:
            raise ValueError(f"data.contamination: {len(texts)} evaluation sets must be at most 255")
        self.tasks, self.n, self.shortest, self.min_matches = list(texts), n, shortest, min_matches
        hashes, owners, beginnings = [np.empty(0, np.uint64)], [np.empty(0, np.uint8)], [np.empty(0, np.uint64)]
        for number, some in enumerate(texts.values()):
            own = [np.empty(0, np.uint64)]
            for words in hash_words(list(some)):
                if len(words) >= shortest:
                    own.append(hash_ngrams(words, min(n, len(words))))
                    beginnings.append(hash_ngrams(words, shortest)[: len(own[-1])])
            hashes.append(np.unique(np.concatenate(own)))
            owners.append(np.full(len(hashes[-1]), number, np.uint8))
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        self.hashes, self.owners = together[order], np.concatenate(owners)[order]
        self.bits = max(10, (16 * len(together)).bit_length())
        known = np.zeros(2**self.bits, np.bool_)
        for probe in self._probes(np.concatenate(beginnings)):
            known[probe] = True
        self.known = np.packbits(known, bitorder="little")

    def save(self, path: Path) -> None:
        """Writes an .npz."""
        settings = json.dumps([self.tasks, self.n, self.shortest, self.min_matches, self.bits])
        with path.open("wb") as file:
            np.savez(file, hashes=self.hashes, owners=self.owners, known=self.known, settings=np.array(settings))

    @classmethod
    def load(cls, path: Path) -> Contamination:
        """Reads what `save` wrote."""
        made = cls.__new__(cls)
        with np.load(path) as file:
            made.tasks, made.n, made.shortest, made.min_matches, made.bits = json.loads(str(file["settings"]))
            made.hashes, made.owners, made.known = file["hashes"], file["owners"], file["known"]
        return made

    def find(self, text: str) -> list[Match]:
        """What one document shares with each set; empty: it is clean."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str], words: Sequence[np.ndarray] | None = None) -> list[list[Match]]:
        """`find` of many documents at once, which is faster; words: what `hash_words` gives for them."""
        words = hash_words(texts) if words is None else words
        found: list[list[Match]] = [[] for _ in texts]
        ends = np.cumsum([len(known) for known in words])
        hits = [np.empty((0, 3), np.int64)]  # (first word, words, set)
        together = np.concatenate(words) if len(words) else np.empty(0, np.uint64)
        places = self._places(together)
        for length in range(self.shortest, self.n + 1):
            places = places[places + length <= len(together)]
            grams = hash_ngrams_at(together, places, length)
            at, starts = np.searchsorted(self.hashes, grams), places
            while len(at):  # an n-gram stands once for each set that has it
                inside = at < len(self.hashes)
                at, starts, grams = at[inside], starts[inside], grams[inside]
                same = self.hashes[at] == grams
                at, starts, grams = at[same], starts[same], grams[same]
                hits.append(np.stack([starts, np.full(len(at), length), self.owners[at]], 1))
                at = at + 1
        every = np.concatenate(hits)
        document = np.searchsorted(ends, every[:, 0], side="right")
        inside = every[:, 0] + every[:, 1] <= ends[document] if len(every) else np.empty(0, np.bool_)
        every, document = every[inside], document[inside]
        for number in np.unique(document):
            own = every[document == number] - [ends[number] - len(words[number]), 0, 0]
            found[number] = self._matches(texts[number], len(words[number]), own)
        return found

    def _probes(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two places in the table of bits, int64."""
        high = hashes >> np.uint64(64 - self.bits)
        return high.view(np.int64), (hashes & np.uint64(2**self.bits - 1)).view(np.int64)

    def _places(self, words: np.ndarray) -> np.ndarray:
        """Where n-grams of the sets may begin: where their first words do, by a table of bits that errs one way."""
        probes = self._probes(hash_ngrams(words, self.shortest))
        places = np.arange(len(probes[0]))
        for probe in probes:
            bit = probe[places]
            places = places[self.known[bit >> 3] >> (bit & 7).astype(np.uint8) & 1 == 1]
        return places

    def _matches(self, text: str, n_word: int, hits: np.ndarray) -> list[Match]:
        matches = []
        for task in np.unique(hits[:, 2]):
            own = hits[hits[:, 2] == task]
            whole = bool((own[:, 1] < self.n).any())  # a short text from its first word to its last
            if len(own) >= self.min_matches or whole:
                share = len(np.unique(own[:, 0])) / max(1, n_word - self.n + 1)
                matches.append(Match(self.tasks[task], len(own), min(1.0, share), _passage(text, own)))
        return matches


def _passage(text: str, hits: np.ndarray) -> str:
    """The text of the first matched words and of those that go on from them without a gap."""
    hits = hits[np.argsort(hits[:, 0])]
    first, end = int(hits[0, 0]), int(hits[0, 0])
    for start, length, _ in hits.tolist():
        if start > end:
            break
        end = max(end, start + length)
    spans = [found.span() for number, found in zip(range(end), WORDS.finditer(text), strict=False) if number >= first]
    return text[spans[0][0] : min(spans[-1][1], spans[0][0] + PASSAGE)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"evaluation set {path} cannot be read ({error}): check the path, and that it is UTF-8"
        ) from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, record)."""
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        with valid_json(f"{path}, line {number}"):
            record = json.loads(line)
        yield number, record


def _read_hub(task: str) -> Iterator[tuple[int, Any]]:
    offline_without_network()
    import datasets  # 2 s: only where it is needed

    source = TASKS[task]
    try:
        records = datasets.load_dataset(source.dataset, source.subset, split=source.split)
    except Exception as error:
        raise UserError(
            f"evaluation set {task} ({source.dataset}) cannot be had from the hub: {reason(error)}: "
            f"connect, or give a folder with {task}.jsonl"
        ) from error
    yield from enumerate(records, 1)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
