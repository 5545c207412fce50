"""Memory while a stream far larger than memory is prepared: made-up documents, cleaned of exact and near duplicates.

    python benchmarks/stream_memory.py [TOKENIZER] [--scratch FOLDER] [--gigabytes 10]

Writes so much text as one .jsonl.zst file, a hundredth of the documents twice, and prepares it by
`python -m gptstar.prepare` with exact and near duplicates removed. The resident memory of all its processes is sampled
five times a second; printed are the largest sum in each tenth of the run, and what was found.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard
from corpus import default_tokenizer
from prepare import resident

from gptstar.environment import commit, cpu_name

SENTENCES, PER_DOCUMENT = 200_000, 40
AGAIN = 0.01  # share of the documents that come twice


def write_stream(path: Path, n_byte: int, seed: int = 0) -> tuple[int, int]:
    """Documents of made-up sentences; returns how many, and how many of them repeat an earlier one."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(60_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    drawn = rng.choices(words, weights, k=SENTENCES * 15)
    sentences = [" ".join(drawn[15 * i : 15 * i + 15]) + "." for i in range(SENTENCES)]
    written = documents = repeated = 0
    last = ""
    with path.open("wb") as file, zstandard.ZstdCompressor(1).stream_writer(file) as out:
        while written < n_byte:
            lines = []
            for _ in range(500):
                again = bool(last) and rng.random() < AGAIN
                last = last if again else " ".join(rng.choices(sentences, k=PER_DOCUMENT))
                repeated += again
                lines.append(f'{{"text": "{last}"}}\n')
            block = "".join(lines).encode()
            out.write(block)
            written += len(block)
            documents += 500
    return documents, repeated


def main() -> None:
    """The run and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", help="a folder or tokenizer.json")
    parser.add_argument("--scratch", type=Path, help="a folder with room for the text, twice")
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    revision = commit()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        options.tokenizer = options.tokenizer or default_tokenizer(folder)
        corpus = folder / "stream.jsonl.zst"
        documents, repeated = write_stream(corpus, int(options.gigabytes * 1e9))
        settings = [f"data.paths=[{corpus}]", f"data.cache_dir={folder}/cache", f"tokenizer.source={options.tokenizer}"]
        more = ["tokenizer=file", "data.exact_duplicates=true", "data.near_duplicates.threshold=0.8"]
        command = [sys.executable, "-m", "gptstar.prepare", "data=text_files", *settings, *more]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        samples: list[tuple[float, float]] = []
        while process.poll() is None:
            samples.append((time.perf_counter() - start, resident(process.pid)))
            time.sleep(0.2)
        if process.returncode:
            raise SystemExit(f"preparing ended with code {process.returncode}")
        seconds = time.perf_counter() - start
        (card,) = (json.loads(path.read_text()) for path in (folder / "cache").glob("*/data.json"))
    tenths = [max((mb for t, mb in samples if i <= 10 * t / seconds <= i + 1), default=0) for i in range(10)]
    size = card["read"]["bytes"] / 1e9
    print(f"{cpu_name()}, commit {revision}: {size:.2f} GB of text, {documents:,} documents, in {seconds:.0f} s")
    print(f"removed: {card['removed']} ({repeated:,} documents were written twice)")
    print("largest memory in each tenth of the run, MB: " + " ".join(f"{mb:.0f}" for mb in tenths))
    print(f"largest memory of all processes together: {max(mb for _, mb in samples):.0f} MB")
    if options.json:
        result: dict = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        result |= {"bytes": card["read"]["bytes"], "seconds": seconds, "memory_mb_by_tenth": tenths}
        result |= {"removed": card["removed"], "written_twice": repeated, "documents": documents}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
