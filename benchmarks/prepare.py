"""Preparing a corpus: ours against `datasets.map` over the same fast tokenizer on as many processes.

    python benchmarks/prepare.py [CORPUS.jsonl.xz TOKENIZER] [--rounds 3] [--workers 2]

Without a corpus: `corpus.py` says which.

All take turns, each in a process of its own with an empty cache.

ours              `gptstar.data.prepare.prepare`, all of it: decompress, parse, tokenise, split, shard, checksum
ours, compared    the same with exact and near duplicates sought
map               `datasets.map` alone, batched, over a table that is loaded and parsed already, writing its result
load + map        loading the compressed file included
tokenizer         `encode_batch_fast` alone on texts in memory, on as many threads: what the tokenizer itself can do

Tokens a second are of the documents' tokens; ratios are medians over the rounds. Memory is the largest sum of the
resident sizes of all processes of a contestant, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from corpus import default_corpus, texts_of

CONTESTANTS = {
    "ours": "ours, from the compressed file",
    "ours_compared": "ours, duplicates sought as well",
    "map": "datasets.map, loaded already",
    "load_map": "datasets, loading and map",
    "tokenizer": "the tokenizer alone, texts in memory",
}


def work(name: str, corpus: str, source: str, n_worker: int, folder: str) -> None:
    """One contestant's turn: prints tokens and seconds."""
    os.environ["HF_HOME"] = folder
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if name == "tokenizer" else "false"
    os.environ["RAYON_NUM_THREADS"] = str(n_worker)
    from gptstar.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(source, "<|endoftext|>")
    start = time.perf_counter()
    if name.startswith("ours"):
        from gptstar.data.config import DataConfig
        from gptstar.data.duplicates import NearConfig
        from gptstar.data.prepare import prepare
        from gptstar.data.tokenizer import TokenizerConfig

        more: dict = {"exact_duplicates": True, "near_duplicates": NearConfig()} if name == "ours_compared" else {}
        data = DataConfig(name="race", corpus="text_files", paths=[corpus], cache_dir=folder, workers=n_worker, **more)
        found = prepare(data, TokenizerConfig(source=source)).corpora["race"]
        seconds = time.perf_counter() - start
        n_token = sum(split.tokens - split.documents for split in (found.train.split, found.validation.split))
    elif name == "tokenizer":
        texts = list(texts_of(corpus))
        tokenizer.encode_batch(texts[:100])
        start = time.perf_counter()
        n_token = 0
        for i in range(0, len(texts), 1000):
            n_token += sum(map(len, tokenizer.encode_batch(texts[i : i + 1000])))
        seconds = time.perf_counter() - start
    else:
        import datasets

        datasets.disable_progress_bars()
        table = datasets.load_dataset("json", data_files=[corpus], split="train", cache_dir=folder)
        if name == "map":
            start = time.perf_counter()
        mapped = table.map(
            lambda batch: {"ids": tokenizer.encode_batch(batch["text"])},
            batched=True,
            remove_columns=table.column_names,
            num_proc=n_worker,
        )
        seconds = time.perf_counter() - start
        import pyarrow.compute as pc

        n_token = pc.sum(pc.list_value_length(mapped.data.column("ids"))).as_py()
    print(json.dumps({"tokens": n_token, "seconds": seconds}))


def turn(name: str, options: argparse.Namespace) -> dict:
    """A contestant in a process of its own: tokens, seconds, and peak memory of it and its children in MB."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        command = [sys.executable, __file__, options.corpus, options.tokenizer, "--workers", str(options.workers)]
        process = subprocess.Popen([*command, "--turn", name, "--scratch", folder], stdout=subprocess.PIPE, text=True)
        peak = [0.0]

        def watch() -> None:
            while process.poll() is None:
                peak[0] = max(peak[0], resident(process.pid))
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{name} ended with code {process.returncode}")
    return {**json.loads(output.splitlines()[-1]), "memory_mb": round(peak[0], 1)}


def resident(pid: int) -> float:
    """MB in memory of a process and all below it; shared pages count once for each."""
    total, waiting = 0.0, [pid]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/status").read_text()
            waiting += map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0) / 1000
    return total


def main() -> None:
    """The race and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", help="a .jsonl file, compressed or not, with a field text")
    parser.add_argument("tokenizer", nargs="?", help="a folder or tokenizer.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scratch", help="where caches are made and removed again")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        work(options.turn, options.corpus, options.tokenizer, options.workers, options.scratch)
        return
    from gptstar.environment import commit, cpu_name

    revision = commit()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if options.tokenizer is None:
            options.corpus, options.tokenizer = default_corpus(Path(folder))
        rounds = [{name: turn(name, options) for name in CONTESTANTS} for _ in range(options.rounds)]
    counts = {name: {one[name]["tokens"] for one in rounds} for name in CONTESTANTS}
    assert len(set.union(*(counts[name] for name in ("ours", "map", "load_map", "tokenizer")))) == 1, counts
    print(f"{cpu_name()}, commit {revision}, {options.workers} workers, {counts['ours'].pop():,} tokens")
    rates = {name: [one[name]["tokens"] / one[name]["seconds"] for one in rounds] for name in CONTESTANTS}
    for name, title in CONTESTANTS.items():
        spread = f"({min(rates[name]) / 1e6:.2f} - {max(rates[name]) / 1e6:.2f})"
        memory = max(one[name]["memory_mb"] for one in rounds)
        print(f"{title:40} {statistics.median(rates[name]) / 1e6:6.2f}M tokens/s {spread}, {memory:6.0f} MB")
    ratios = {}
    for peer in ("tokenizer", "load_map", "map"):
        pairs = [a / b for a, b in zip(rates["ours"], rates[peer], strict=True)]
        ratios[f"ours / {peer}"] = statistics.median(pairs)
        print(f"ours / {CONTESTANTS[peer]}: {statistics.median(pairs):.2f} ({min(pairs):.2f} - {max(pairs):.2f})")
    if options.json:
        result: dict = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        result |= {"rounds": rounds, "median_ratios": ratios}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
