"""Parts to shards: what repeats other documents is left out, the rest is written in the order of the pieces."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from gptstar.data.duplicates import KEY, NEAR, NearConfig, find_exact, find_near
from gptstar.data.parts import Part, on_disk
from gptstar.data.shards import ShardWriter, Split
from gptstar.files import replace_text

SPLITS = ("train", "validation")
MEMORY = 300_000_000  # bytes that the search for duplicates may use
STATE = "assembled.json"
KEYS, SIGNATURES = "keys.npy", "signatures.npy"  # of what stayed, for corpora that come later in a mixture


class Repeats:
    """Which documents of a corpus repeat others, by their number through all parts.

    earlier: folders of corpora that come before, whose documents count as seen. Within the corpus held-out documents
    count as seen before all others, so that no training document is like one of them.

    scratch: a folder for temporary files, gone when it is done; name: what messages call the file of a part's record.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        earlier: Sequence[Path],
        exact: bool,
        near: NearConfig,
        scratch: Path,
        name: Callable[[Part, int], str] = lambda part, record: part.piece,
    ) -> None:
        self.parts = [part for part in parts if part.documents]
        self.name = name
        self._number = {part.path: number for number, part in enumerate(self.parts)}
        self.starts = np.array([0, *accumulate(part.documents for part in self.parts)])
        self._table = lru_cache(8)(lambda i: self.parts[i].documents_table())
        self.exact, self.near = np.empty((0, 2), np.int64), np.empty(0, NEAR)
        if exact and self.parts:
            before = _rows_of(earlier, KEYS)
            n_before = sum(map(len, before))
            keys = [*before, *(part.keys() for part in self.parts)]
            self.exact = find_exact(keys, MEMORY, self._priority(n_before), n_before) - n_before
        if near.threshold and self.parts:
            before = _rows_of(earlier, SIGNATURES)
            n_before = sum(map(len, before))
            removed = np.zeros(n_before + self.starts[-1], np.bool_)
            removed[n_before + self.exact[:, 0]] = True
            rows = [*before, *(part.signatures() for part in self.parts)]
            shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
            scratch.mkdir()
            self.near = find_near(rows, near.threshold, MEMORY, removed, self._priority(n_before), n_before, scratch)
            scratch.rmdir()
            for key in ("document", "original"):
                self.near[key] -= n_before

    def among(self, part: Part) -> dict[int, dict]:
        """{row: why it goes} of a part."""
        if not part.documents:
            return {}
        index = self._number[part.path]
        first, last = self.starts[index], self.starts[index + 1]
        found = {}
        a, b = np.searchsorted(self.exact[:, 0], (first, last))
        for document, original in self.exact[a:b].tolist():
            found[document - int(first)] = {"reason": "duplicate", **self._name(original)}
        a, b = np.searchsorted(self.near["document"], (first, last))
        for document, original, similarity in self.near[a:b].tolist():
            entry = {"reason": "near duplicate", **self._name(original), "similarity": round(similarity, 3)}
            found[document - int(first)] = entry
        return found

    def _priority(self, n_before: int) -> np.ndarray:
        """Which documents are held out, bool, after those of earlier corpora."""
        held_out = (self._table(index)["held_out"] for index in range(len(self.parts)))
        return np.concatenate([np.zeros(n_before, np.bool_), *held_out])

    def _name(self, document: int) -> dict:
        if document < 0:
            return {"of": "an earlier corpus"}
        index = int(np.searchsorted(self.starts, document, side="right")) - 1
        record = int(self._table(index)["record"][document - self.starts[index]])
        return {"of": self.name(self.parts[index], record), "of_record": record}


class Assembly:
    """The shards of a corpus in the making; it goes on after those that are finished.

    assembled.json   the finished shards of each split, until all that goes with them is written too
    """

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int) -> None:
        self.folder = folder
        self.state = folder / STATE
        known = json.loads(self.state.read_text()) if self.state.is_file() else {}
        finished = {name: Split.from_dict(known[name]) if name in known else Split() for name in SPLITS}
        self.skip = {name: split.documents for name, split in finished.items()}
        self.writers = {
            name: ShardWriter(folder, name, vocab_size, shard_tokens, finished[name], self._save) for name in SPLITS
        }

    def add(self, part: Part, stays: np.ndarray) -> None:
        """The documents of a part, in its order, as far as they stay: bool (n,)."""
        table, tokens = part.documents_table(), None
        lengths = table["tokens"].astype(np.int64)
        for name, writer in self.writers.items():
            chosen = stays & (table["held_out"] == (name == "validation"))
            rows = np.flatnonzero(chosen)
            n = min(self.skip[name], len(rows))
            self.skip[name] -= n
            rows = rows[n:]
            if not len(rows):
                continue
            if tokens is None:
                tokens = part.tokens_of_all(writer.dtype.str)
            wanted = np.zeros(len(table), np.bool_)
            wanted[rows] = True
            writer.add(tokens[np.repeat(wanted, lengths)], lengths[rows], table["bytes"][rows].astype(np.int64))

    def finish(self) -> dict[str, Split]:
        """The finished splits."""
        splits = {name: writer.close() for name, writer in self.writers.items()}
        self._save()
        return splits

    def abandon(self) -> None:
        """Stops half-way; another one goes on after the last whole shard."""
        for writer in self.writers.values():
            writer.abandon()

    def _save(self) -> None:
        replace_text(self.state, json.dumps({name: writer.split.as_dict() for name, writer in self.writers.items()}))


def write_shards(
    parts: Sequence[Part], repeats: Repeats, folder: Path, vocab_size: int, shard_tokens: int
) -> dict[str, Split]:
    """All shards of a corpus."""
    assembly = Assembly(folder, vocab_size, shard_tokens)
    try:
        for part in parts:
            assembly.add(part, staying(part, repeats))
        return assembly.finish()
    finally:
        assembly.abandon()


def staying(part: Part, repeats: Repeats) -> np.ndarray:
    """Which documents of a part stay, bool (n,)."""
    stays = np.ones(part.documents, np.bool_)
    stays[list(repeats.among(part))] = False
    return stays


def write_removed(parts: Sequence[Part], repeats: Repeats, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """removed.jsonl and, of what shares text with evaluation sets and stays, contaminated.jsonl.

    Returns how many went for each reason, and how many stay in spite of each evaluation set.
    """
    counts: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    files = (folder / name for name in ("removed.jsonl", "contaminated.jsonl"))
    gone, stays = (path.open("w", encoding="utf-8") for path in files)
    with gone, stays:
        for part in parts:
            removed, contaminated = part.removed()
            records = part.documents_table()["record"]
            again = [
                {"piece": repeats.name(part, int(records[row])), "record": int(records[row]), **why}
                for row, why in sorted(repeats.among(part).items())
            ]
            for entry in sorted([*removed, *again], key=lambda entry: entry["record"]):
                gone.write(json.dumps(entry, ensure_ascii=False) + "\n")
                counts[entry["reason"]] += 1
            for entry in contaminated:
                stays.write(json.dumps(entry, ensure_ascii=False) + "\n")
                tasks[entry["task"]] += 1
    return counts, tasks


def write_marks(parts: Sequence[Part], repeats: Repeats, folder: Path, exact: bool, near: bool) -> None:
    """What later corpora of a mixture are compared with: keys and signatures of all documents that stay."""
    for wanted, name, of in ((exact, KEYS, Part.keys), (near, SIGNATURES, Part.signatures)):
        if wanted:
            rows = (of(part)[staying(part, repeats)] for part in parts if part.documents)
            _write_rows(folder / name, rows, sum(int(staying(p, repeats).sum()) for p in parts))


def _rows_of(folders: Sequence[Path], name: str) -> list[np.ndarray]:
    """What `write_marks` has written there, on disk; corpora without a document are left out."""
    found = [on_disk(folder / name) for folder in folders]
    return [rows for rows in found if len(rows)]


def _write_rows(path: Path, pieces: Iterator[np.ndarray], n: int) -> None:
    """An .npy file of n rows, some at a time; written, not mapped, so that they do not stay in memory."""
    first = next(pieces, np.empty(0, KEY))
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (n, *first.shape[1:]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in chain([first], pieces):
            file.write(np.ascontiguousarray(rows).tobytes())
