"""The CPU benchmarks one after another, in short form, and what they found against the targets in one table.

    python -m benchmarks [--only NAME ...] [--list] [--output FOLDER]

Each is a process of its own and prints its own table on the way; one that fails is named and the next goes on. Two
cores need about a quarter of an hour for all. Short runs spread widely: a figure that is to be quoted comes from the
script itself with its own settings. The exit status is 1 where a benchmark failed to run, whatever the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Figure:
    """A number in a benchmark's JSON: the keys that lead to it (a list there means its median), and its target."""

    title: str
    keys: tuple[str | int, ...]
    at_least: float | None = None
    at_most: float | None = None

    def read(self, found: Any) -> float | None:
        """The number; None where it is missing, because a peer is."""
        for key in self.keys:
            try:
                found = found[key]
            except (KeyError, IndexError):
                return None
        return float(statistics.median(found) if isinstance(found, list) else found)

    @property
    def target(self) -> str:
        """In words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""

    def verdict(self, value: float | None) -> str:
        """Whether the target holds."""
        if value is None or not self.target:
            return ""
        low = self.at_least is None or value >= self.at_least
        high = self.at_most is None or value <= self.at_most
        return "yes" if low and high else "NO"


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder with the settings of a short run, and what is read from its JSON."""

    name: str
    about: str
    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]


LIMITS = '{"lambada_openai": 50, "wikitext": 1, "hellaswag": 30}'
BENCHMARKS = (
    Benchmark(
        "startup",
        "seconds to import, and from the command line to the first training step",
        ("--repeats", "1"),
        (
            Figure("import, s", ("seconds", "python -c 'import gptstar; gptstar.GPT'"), at_most=2.5),
            Figure(
                "train.py to its first step, s", ("seconds", "train.py to its first step, corpus not cached"), None, 10
            ),
        ),
    ),
    Benchmark(
        "train_step",
        "a training step in fp32 against transformers and the matmul peak",
        ("--rounds", "2", "--batch", "2"),
        (
            Figure("GPT-2 Small, share of the matmul peak", ("mfu", "gpt2_small"), at_least=0.80),
            Figure("GPT-127*, share of the matmul peak", ("mfu", "gpt127"), at_least=0.80),
            Figure("GPT-2 Small / transformers", ("median_ratios", "gpt2_small / transformers"), at_least=1.25),
            Figure("GPT-127* / transformers", ("median_ratios", "gpt127 / transformers"), at_least=1.25),
        ),
    ),
    Benchmark(
        "loss",
        "head and loss, forward and backward, against torch's own and whole logits",
        ("--rounds", "2", "--device", "cpu"),
        (
            Figure("time, whole logits / ours", ("ratios", "time, plain / ours")),
            Figure("time, torch's chunked / ours", ("ratios", "time, torch / ours")),
            Figure("memory, whole logits / ours", ("ratios", "memory, plain / ours")),
            Figure("memory, torch's chunked / ours", ("ratios", "memory, torch / ours")),
        ),
    ),
    Benchmark(
        "evaluation",
        "lm-evaluation-harness tasks against its own HFLM",
        ("--rounds", "1", "--batch-sizes", "4", "--limits", LIMITS),
        (
            Figure("LAMBADA, HFLM / ours", ("tasks", "lambada_openai", "ratio"), at_least=1.5),
            Figure("WikiText, HFLM / ours", ("tasks", "wikitext", "ratio"), at_least=1.5),
            Figure("HellaSwag, HFLM / ours", ("tasks", "hellaswag", "ratio"), at_least=2.5),
        ),
    ),
    Benchmark(
        "prepare",
        "a corpus to token shards, against datasets.map",
        ("--rounds", "1"),
        (
            Figure("ours / datasets.map, loaded already", ("median_ratios", "ours / map"), at_least=1.5),
            Figure("ours / datasets, loading and map", ("median_ratios", "ours / load_map")),
            Figure("ours / the tokenizer alone", ("median_ratios", "ours / tokenizer")),
        ),
    ),
    Benchmark(
        "decode",
        "one sequence decoded, against the memory's speed, transformers and CTranslate2",
        ("--rounds", "2", "--tokens", "32", "--rows", "1", "--model", "gpt2_small"),
        (
            Figure("fp32 / limit", ("models", "gpt2_small", "ratios", "fp32 / limit"), at_least=0.90),
            Figure("fp32 / transformers", ("models", "gpt2_small", "ratios", "fp32 / transformers, batch 1")),
            Figure(
                "int8 / CTranslate2 int8",
                ("models", "gpt2_small", "ratios", "int8 / CTranslate2 int8, batch 1"),
                at_least=1.1,
            ),
        ),
    ),
    Benchmark(
        "batching",
        "32 requests together, against one after another in transformers",
        ("--rounds", "1"),
        (Figure("together / one after another", ("ratio",), at_least=8),),
    ),
    Benchmark(
        "serving",
        "32 clients at the server, against one after another at one made of transformers",
        ("--rounds", "1", "--requests", "32"),
        (
            Figure("32 clients / one after another", ("ratio",), at_least=8),
            Figure("first token, p95, s", ("first_p95",)),
            Figure("next token beside a slow and a leaving client / others", ("rude_over_polite", "next_p95")),
        ),
    ),
    Benchmark(
        "neox20b",
        "a model of NeoX-20B's kind, 1.7 GB, under a memory budget, against the disk and accelerate's offload",
        ("--layers", "24", "--width", "1536", "--budget", "1400MiB", "--int4-budget", "2GiB"),
        (
            Figure("streamed / the disk alone", ("over_disk",), at_most=1.2),
            Figure("accelerate / streamed", ("peer_over_ours",), at_least=5),
            Figure("8 rows together, tokens/s", ("batch_tokens_per_second",)),
            Figure("int4, tokens/s", ("int4_tokens_per_second",)),
        ),
    ),
    Benchmark(
        "context_memory",
        "peak memory of a window of 8192 tokens through GPT-303*",
        ("--contexts", "8192", "--whole"),
        (Figure("peak, GiB", ("results", 0, "peak_gib"), at_most=8),),
    ),
)


def run(benchmark: Benchmark, scripts: Path, output: Path) -> Any:
    """What its script wrote; None where it failed."""
    target = output / f"{benchmark.name}.json"
    target.unlink(missing_ok=True)  # an earlier run's
    command = [sys.executable, str(scripts / f"{benchmark.name}.py"), *benchmark.arguments, "--json", str(target)]
    print(f"\n== {benchmark.name}: {benchmark.about}", flush=True)
    start = time.perf_counter()
    status = subprocess.run(command).returncode
    print(f"== {benchmark.name}: exit status {status} after {time.perf_counter() - start:.0f} s", flush=True)
    try:
        return json.loads(target.read_text()) if status == 0 else None
    except (OSError, ValueError):
        return None


def table(found: dict[str, Any], benchmarks: Sequence[Benchmark]) -> str:
    """A line a figure: of which benchmark, what, how much, its target and whether that holds."""
    rows = [("benchmark", "what", "found", "target", "holds")]
    for benchmark in benchmarks:
        if found[benchmark.name] is None:
            rows.append((benchmark.name, "FAILED to run", "", "", ""))
            continue
        for figure in benchmark.figures:
            value = figure.read(found[benchmark.name])
            shown = "missing" if value is None else f"{value:.2f}"
            rows.append((benchmark.name, figure.title, shown, figure.target, figure.verdict(value)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(
    arguments: Sequence[str] | None = None, benchmarks: Sequence[Benchmark] = BENCHMARKS, scripts: Path = HERE
) -> int:
    """Runs what is asked for; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [benchmark.name for benchmark in benchmarks]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help=", ".join(names))
    parser.add_argument("--list", action="store_true", help="say what there is and run nothing")
    parser.add_argument("--output", type=Path, help="keep each benchmark's JSON in this folder")
    options = parser.parse_args(arguments)
    chosen = [benchmark for benchmark in benchmarks if benchmark.name in options.only]
    if options.list:
        for benchmark in chosen:
            print(f"{benchmark.name:16} {benchmark.about} ({' '.join(benchmark.arguments)})")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        output = options.output or Path(scratch)
        output.mkdir(parents=True, exist_ok=True)
        found = {benchmark.name: run(benchmark, scripts, output.resolve()) for benchmark in chosen}
    print("\n" + table(found, chosen))
    return int(None in found.values())


if __name__ == "__main__":
    sys.exit(main())
