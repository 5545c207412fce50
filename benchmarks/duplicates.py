"""What the filters, the search for duplicates and the decontamination cost, and what they find of what is planted.

    python benchmarks/duplicates.py [CORPUS.jsonl.xz ...] [--eval-dir FOLDER]
        [--megabytes 60] [--planted 200] [--threshold 0.8] [--json FILE]

Takes the first documents of .jsonl[.xz|.gz|.bz2] files, plants copies of some (as they are; with words replaced, put in
or cut off the end at several rates; with other case and punctuation) and passages of evaluation sets in others, and
looks for all of them at once. What a copy should count as is decided by its TRUE Jaccard similarity to its original,
computed from the sets of shingles. Speeds are those of one process over text in memory, in blocks as a worker gets
them, by the processor time it takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from corpus import SHARED, default_corpus, texts_of

from gptstar.data.contamination import TASKS, Contamination, evaluation_texts
from gptstar.data.duplicates import KEY, NearConfig, exact_key, find_exact, find_near, signature
from gptstar.data.filters import FilterConfig, first_failure
from gptstar.data.words import hash_ngrams, hash_words
from gptstar.environment import commit, cpu_name

BLOCK = 4_000_000  # characters of a block
RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
BORDERS = (0.0, 0.4, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.01)
FILTERS = FilterConfig(
    min_chars=100,
    max_chars=1_000_000,
    min_letters=0.6,
    script="latin",
    max_repeated_lines=0.2,
    max_repeated_ngrams=0.15,
    newer_than="2000-01-01",
)


def blocks(texts: list[str]) -> Iterator[list[str]]:
    """As a worker gets them."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def edit(random: np.random.Generator, text: str, kind: str, rate: float) -> str:
    """A copy of a text, changed as its kind says."""
    words = text.split(" ")
    if kind == "case and punctuation":
        return ", ".join(words).upper().replace(".", " ...\n")
    if kind == "truncate":
        return " ".join(words[: max(1, round(len(words) * (1 - rate)))])
    for place in np.flatnonzero(random.random(len(words)) < rate)[::-1]:
        words[place : place + (kind == "substitute")] = [f"other{random.integers(1000)}"]
    return " ".join(words)


def jaccard(a: str, b: str, n_gram: int) -> float:
    """The true similarity of two texts."""
    one, two = (set(hash_ngrams(words, n_gram).tolist()) for words in hash_words([a, b]))
    return len(one & two) / max(1, len(one | two))


def memory(key: str) -> float:
    """This process's resident memory, now (VmRSS) or at its highest (VmHWM), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key))


class Meter:
    """Seconds, MB/s and the rise of memory of each stage."""

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.rows = megabytes, {}  # type: float, dict[str, dict[str, float]]

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work."""
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory starts anew
        before, start = memory("VmRSS"), time.process_time()
        result = work()
        seconds = time.process_time() - start
        row = {"seconds": seconds, "MB/s": self.megabytes / seconds, "peak MB": memory("VmHWM") - before}
        self.rows[name] = row
        print(f"{name:44} {seconds:8.2f} s {row['MB/s']:9.1f} MB/s {row['peak MB']:8.0f} MB more memory", flush=True)
        return result


def plant(
    random: np.random.Generator, texts: list[str], n: int, n_gram: int
) -> tuple[list[str], list[tuple[str, float, int, float]]]:
    """The copies, and of each (kind, rate, original, true similarity)."""
    kinds = [("exact", 0.0), ("case and punctuation", 0.0)]
    kinds += [(kind, rate) for kind in ("substitute", "insert", "truncate") for rate in RATES]
    long = [number for number, text in enumerate(texts) if len(text) > 600]
    sources = random.permutation(long)[: n * len(kinds)].tolist()
    copies, about = [], []
    for place, source in enumerate(sources):
        kind, rate = kinds[place % len(kinds)]
        copy = texts[source] if kind == "exact" else edit(random, texts[source], kind, rate)
        copies.append(copy)
        about.append((kind, rate, source, jaccard(texts[source], copy, n_gram)))
    return copies, about


def table(title: str, rows: dict[Any, list[bool]]) -> dict[str, float]:
    """Prints the share of each row that is true."""
    print(f"\n{title}")
    for name, found in rows.items():
        print(f"  {name!s:44} {np.mean(found):7.3f}  of {len(found)}")
    return {str(name): float(np.mean(found)) for name, found in rows.items()}


def main() -> None:
    """Plants, measures, looks for what was planted, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", help="none: `corpus.py` says which")
    own = SHARED / "eval"
    parser.add_argument(
        "--eval-dir", type=Path, default=own if own.is_dir() else None, help="TASK.jsonl; none: without"
    )
    parser.add_argument("--megabytes", type=float, default=60, help="of text")
    parser.add_argument("--planted", type=int, default=200, help="copies of each kind, passages of each set")
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options, revision = parser.parse_args(), commit()
    random, config = np.random.default_rng(0), NearConfig(threshold=options.threshold)
    texts, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for text in chain.from_iterable(map(texts_of, options.paths or [default_corpus(Path(folder))[0]])):
            texts.append(text)
            size += len(text.encode())
            if size >= options.megabytes * 1e6:
                break
    n_own = len(texts)
    copies, about = plant(random, texts, options.planted, config.n_gram)
    texts += copies

    passages: dict[int, str] = {}  # {document: the set whose passage was planted in it}
    sets = {}
    if options.eval_dir:
        sets = {task: [text for _, text in evaluation_texts(task, options.eval_dir)] for task in TASKS}
        hosts = iter(random.permutation(np.setdiff1d(np.arange(n_own), [row[2] for row in about])).tolist())
        for task, some in sets.items():
            for passage in islice((some[i] for i in random.permutation(len(some))), options.planted):
                words = passage.split()
                n_word = len(hash_words([passage])[0])
                if n_word >= 8 and (host := next(hosts, None)) is not None:
                    cut = texts[host].find(" ", len(texts[host]) // 2)
                    texts[host] = f"{texts[host][:cut]} {' '.join(words[:60]).upper()} {texts[host][cut:]}"
                    passages[host] = task
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {megabytes:.0f} MB, of which {len(copies)} copies; {len(passages)} with passages\n")
    meter, every = Meter(megabytes), list(blocks(texts))
    hash_words(["warm-up"])
    first_failure("warm-up", FILTERS, "2019-01-01")
    words = meter("words (hash_words)", lambda: [hash_words(block) for block in every])
    both = list(zip(every, words, strict=True))
    failures = meter(
        "all filters, words known",
        lambda: [
            first_failure(text, FILTERS, "Thu, 03 Jan 2019 10:00:00 GMT", known)
            for block, hashes in both
            for text, known in zip(block, hashes, strict=True)
        ],
    )
    keys = meter("exact_key", lambda: np.frombuffer(b"".join(exact_key(t) for block in every for t in block), KEY))
    rows = meter(
        "signature, words known", lambda: np.concatenate([signature(*pair[:1], config, pair[1]) for pair in both])
    )
    matches: list[list] = []
    if sets:
        contamination = meter("Contamination of the evaluation sets, once", lambda: Contamination(sets))
        print(f"  {len(contamination.hashes)} n-grams, {contamination.hashes.nbytes / 1e6:.1f} MB of hashes")
        matches = meter(
            "find_all of Contamination, words known",
            lambda: [found for block, hashes in both for found in contamination.find_all(block, hashes)],
        )
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "signatures.npy", rows)
        del rows
        exact = meter("find_exact, over all documents", lambda: find_exact([keys], 1 << 26))
        mapped = np.load(Path(folder) / "signatures.npy", mmap_mode="r")
        removed = np.zeros(len(texts), np.bool_)
        removed[exact[:, 0]] = True
        near = meter("find_near, over all documents", lambda: find_near([mapped], config.threshold, 1 << 26, removed))

    gone_exact, gone_near = set(exact[:, 0].tolist()), set(near["document"].tolist())
    gone = gone_exact | gone_near  # at low rates some copies have no change at all
    by_kind, by_truth = defaultdict(list), defaultdict(list)
    for number, (kind, rate, _, true) in enumerate(about, n_own):
        name = f"{kind} {rate:.1%}" if rate else kind
        by_kind[name].append(number in (gone_exact if kind == "exact" else gone))
        if kind != "exact":
            low = max(border for border in BORDERS if border <= true)
            by_truth[f"true Jaccard {low:.2f} .. {BORDERS[BORDERS.index(low) + 1]:.2f}"].append(number in gone)
    truths = [jaccard(texts[row["document"]], texts[row["original"]], config.n_gram) for row in near]
    results: dict[str, Any] = {"speed": meter.rows}
    results["recall by kind"] = table("found, by how the copy was made", by_kind)
    results["recall by truth"] = table("found, by true similarity", dict(sorted(by_truth.items())))
    right = {f"true similarity at least {least}": [true >= least for true in truths] for least in (0.6, 0.7, 0.8)}
    results["precision"] = table(f"of the {len(near)} near duplicates found, planted or not", right)
    print(f"  exact: {len(exact)} found, {len(gone_exact & set(range(n_own)))} of them not planted; ", end="")
    print(f"near: {len(gone_near & set(range(n_own)))} not planted")
    refused = Counter(failure for failure in failures if failure)
    print(f"  filters refuse {sum(refused.values())} of {len(texts)}: {dict(refused)}")
    if sets:
        recall = defaultdict(list)
        for number, task in passages.items():
            recall[task].append(task in [match.task for match in matches[number]])
        results["recall of passages"] = table("evaluation passages found", recall)
        others = [(n, match) for n in range(n_own) if n not in passages for match in matches[n]]
        counts = {task: sum(match.task == task for _, match in others) for task in sets}
        results["documents with passages not planted"] = counts
        print(f"\nof {n_own - len(passages)} documents where nothing was planted, some share n-grams with: {counts}")
        for number, match in others[:: max(1, len(others) // 12)]:
            print(f"  {match.task}, {match.n_match}, {match.share:.1%}, document {number}: {match.passage!r:.150}")
    if options.json:
        record = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision, **results}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
