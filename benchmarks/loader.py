"""How fast batches are read, against what the fastest model here consumes.

    python benchmarks/loader.py [CORPUS.jsonl.xz TOKENIZER] [--cache FOLDER] [--step-results FILE]

A corpus is prepared once; then batches of the training order are read as training reads them, in random order from all
shards: by concatenation and by best fit, one corpus and a mixture of two, with the shards in the page cache and without
(each round begins with the kernel told to forget them, POSIX_FADV_DONTNEED, and counts what is in memory of them then).
Tokens a second are of one process without its read-ahead thread; the ratio is to the largest rate in the results of
benchmarks/train_step.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from corpus import default_corpus

from gptstar.data.config import DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.prepare import Prepared, prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.environment import commit, cpu_name
from gptstar.training.config import TrainerConfig
from gptstar.training.order import Order

KINDS = {"concatenate": ("concatenate", False), "best_fit": ("best_fit", False), "mixture": ("concatenate", True)}


def files(prepared: Prepared) -> list[Path]:
    """All token shards."""
    return [c.folder / shard.file for c in prepared.corpora.values() for shard in c.train.split.shards]


def forget(paths: list[Path]) -> float:
    """Asks the kernel to drop the files from its page cache; the share that is there all the same."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    present = pages = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            n = -(-len(view) // mmap.PAGESIZE)
            vector = (ctypes.c_ubyte * n)()
            here = (ctypes.c_char * len(view)).from_buffer(view)
            address = ctypes.addressof(here)
            if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), vector):
                raise OSError(ctypes.get_errno(), "mincore")
            del here
            present += sum(entry & 1 for entry in vector)
            pages += n
    return present / max(1, pages)


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", help="a .jsonl file, compressed or not, with a field text")
    parser.add_argument("tokenizer", nargs="?", help="a folder or tokenizer.json")
    parser.add_argument("--cache", type=Path, help="where the corpus is prepared, and kept; none: it is not kept")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-results", type=Path, default=Path("benchmarks/results/train_step_cpu_onednn.json"))
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.tokenizer is None:
            options.corpus, options.tokenizer = default_corpus(Path(folder))
        options.cache = options.cache or Path(folder, "cache")
        race(options)


def race(options: argparse.Namespace) -> None:
    """All ways of reading, and the table."""
    revision = commit()
    step = json.loads(options.step_results.read_text())
    n_token = step["batch"] * step["length"]
    fastest = max(n_token / statistics.median(seconds) for seconds in step["seconds"].values())
    rates: dict[str, list[float]] = {}
    left: list[float] = []
    for kind, (packing, mixed) in KINDS.items():
        one = CorpusConfig(paths=[options.corpus])
        corpora = {"text": one, "stdlib": CorpusConfig("stdlib", epochs=0.5)} if mixed else {"text": one}
        data = DataConfig(name="loader", corpora=corpora, packing=packing, cache_dir=str(options.cache))
        prepared = prepare(data, TokenizerConfig(source=options.tokenizer))
        settings = TrainerConfig(max_steps=1, batch_size=options.batch)
        for number in range(options.rounds):
            for cache in ("cold", "warm"):
                order = Order(prepared_again(data, options.tokenizer), data, settings, options.length)
                order.read(0)
                if cache == "cold":
                    order = Order(prepared_again(data, options.tokenizer), data, settings, options.length)
                    _ = [packing.windows_per_shard for packing in order.packings.values()]
                    left.append(forget(files(prepared)))
                first = 1 + number * options.steps
                start = time.perf_counter()
                for i in range(options.steps):
                    order.read(first + i)
                seconds = time.perf_counter() - start
                rates.setdefault(f"{kind}, {cache}", []).append(
                    options.steps * options.batch * options.length / seconds
                )
    shape = f"batches of {options.batch} x {options.length}"
    print(f"{cpu_name()}, commit {revision}, {shape}; the fastest model takes {fastest:.0f} tokens/s")
    print(f"in the page cache when a cold round began: at most {max(left):.1%} of the shards")
    for name, found in rates.items():
        ratio = min(found) / fastest
        spread = f"({min(found) / 1e6:.2f} - {max(found) / 1e6:.2f})"
        print(f"{name:20} {statistics.median(found) / 1e6:6.2f}M tokens/s {spread}, at least {ratio:,.0f} times that")
    print(f"slowest round / fastest model: {min(map(min, rates.values())) / fastest:,.0f}")
    if options.json:
        result: dict = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        result |= {"tokens_per_second": rates, "left_in_page_cache": left, "fastest_model": fastest}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def prepared_again(data: DataConfig, tokenizer: str) -> Prepared:
    """Opened anew, so that nothing is mapped yet."""
    return prepare(data, TokenizerConfig(source=tokenizer))


if __name__ == "__main__":
    main()
