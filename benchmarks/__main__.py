"""The CPU benchmarks one after another, in short form, and what they found against the targets in one table.

    python -m benchmarks [--only NAME ...] [--list] [--output FOLDER]

Each is a process of its own and prints its own table on the way; one that fails is named and the next goes on. Two
cores need about half an hour for all. After each of them the table is written anew, FOLDER/bench_cpu.md, from
FOLDER/bench_cpu.json: what ran earlier stays in it, with its own commit and machine, so a part can be run again alone.
Where FOLDER is the usual one README's own table and seconds are written anew too (readme.py).
Short runs spread widely: README says where a longer one stands. The exit status is 1 where a benchmark failed to run,
whatever the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import readme
from benchmarks.table import in_columns, markdown, rows_of

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder with the settings of a short run."""

    name: str
    about: str
    arguments: tuple[str, ...]


LIMITS = '{"lambada_openai": 50, "wikitext": 1, "hellaswag": 30}'
FOUR_TASKS = ("--tasks", "lambada_openai", "piqa", "hellaswag", "winogrande")
NEOX = ("--layers", "24", "--width", "1536", "--budget", "1400MiB", "--int4-budget", "2GiB")
BENCHMARKS = (
    Benchmark("startup", "seconds to import, and from the command line to the first training step", ("--repeats", "2")),
    Benchmark("walk", "README's first commands, as whole processes", ()),
    Benchmark("train_step", "a training step in fp32 against transformers and the matmul peak", ("--rounds", "2")),
    Benchmark("loss", "head and loss, against torch's own and whole logits", ("--rounds", "3", "--device", "cpu")),
    Benchmark(
        "evaluation",
        "lm-evaluation-harness tasks against its own HFLM",
        ("--rounds", "1", "--batch-sizes", "4", "--limits", LIMITS),
    ),
    Benchmark(
        "hflm_equality",
        "log-likelihoods and metrics against HFLM's",
        ("--models", "gpt2", "gptstar", "--documents", "6", *FOUR_TASKS),
    ),
    Benchmark("prepare", "a corpus to token shards, against datasets.map", ("--rounds", "1")),
    Benchmark("loader", "batches as training reads them", ("--rounds", "1")),
    Benchmark("duplicates", "what finds planted copies and evaluation text, and at what speed", ("--megabytes", "20")),
    Benchmark("stream_memory", "memory while a stream is prepared", ("--gigabytes", "0.3")),
    Benchmark("load", "a checkpoint from disk: seconds and peak memory", ("--rounds", "3")),
    Benchmark(
        "decode",
        "one sequence decoded, against the memory's speed, transformers and CTranslate2",
        ("--rounds", "2", "--tokens", "32", "--rows", "1", "--model", "gpt2_small"),
    ),
    Benchmark("quantization", "peak memory of a model in 8 and 4 bits", ()),
    Benchmark("batching", "32 requests together, against one after another in transformers", ("--rounds", "1")),
    Benchmark(
        "serving",
        "32 clients at the server, against one after another at one made of transformers",
        ("--rounds", "1", "--requests", "32"),
    ),
    Benchmark(
        "neox20b", "a model of NeoX-20B's kind under a memory budget, against the disk and accelerate's offload", NEOX
    ),
    Benchmark("context_memory", "peak memory of a window of 8192 tokens", ("--contexts", "8192", "--whole")),
    Benchmark("kill_resume", "runs killed and resumed, against one left alone", ("--kills", "3")),
    Benchmark("scaling", "memory and traffic of ranks, against the formula", ("--ranks", "1", "2")),
    Benchmark("plan", "planned seconds of a step against measured ones", ("--rounds", "1")),
)
# Targets that need a GPU, or runs of hours: said in the table, so that none is passed over in silence.
ELSEWHERE = (
    ("GPU: training GPT-127* at 512 tokens, bf16", "≥ 650k tokens/s, ≥ 50% MFU", "python benchmarks/gpu_train.py"),
    ("GPU: training GPT-303*, bf16", "≥ 50% MFU", "python benchmarks/gpu_train.py"),
    ("GPU: GPT-127* against GPT-2 Small, throughput", "≥ 1.4", "python benchmarks/gpu_train.py"),
    ("GPU: decoding GPT-127*, bf16", "≥ 2,000 tokens/s", "python benchmarks/decode.py"),
)


def run(benchmark: Benchmark, scripts: Path) -> Any:
    """What its script wrote; None where it failed."""
    print(f"\n== {benchmark.name}: {benchmark.about}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{benchmark.name}.json"
        command = [sys.executable, str(scripts / f"{benchmark.name}.py"), *benchmark.arguments, "--json", str(target)]
        status = subprocess.run(command).returncode
        seconds = time.perf_counter() - start
        print(f"== {benchmark.name}: exit status {status} after {seconds:.0f} s", flush=True)
        try:
            if status != 0:
                return None
            # The command is what one would type in any checkout, not what was run in this one.
            return json.loads(target.read_text().replace(f"{scripts}/", "benchmarks/").replace(f" --json {target}", ""))
        except (OSError, ValueError):
            return None


def lines(name: str, entry: dict) -> list[tuple[str, ...]]:
    """Of the table."""
    commit = str(entry["commit"])
    if entry["found"] is None:
        return [(f"{name} FAILED to run", *[""] * 6, commit)]
    return [row.cells(commit) for row in rows_of(name, entry["found"])]


def page(entries: dict[str, dict]) -> str:
    """bench_cpu.md"""
    rows = [line for name, entry in entries.items() for line in lines(name, entry)]
    machines = sorted({entry["hardware"] for entry in entries.values()})
    head = "# What `make bench` found\n\nMedian (range of the repeats). Ratio: how many times better than the peer, or "
    head += "the share or multiple of the limit, repeat by repeat; the target is the ratio's, or ours where there is "
    head += "none. " + "; ".join(machines) + ".\n\n"
    commands = [f"- {name}: `{entry['command']}`, {entry['seconds']:.0f} s" for name, entry in entries.items()]
    missing = [(what, "not measured", "", "", "", target, "", f"`{how}`") for what, target, how in ELSEWHERE]
    return head + markdown([*rows, *missing]) + "\n\nThe commands:\n\n" + "\n".join(commands) + "\n"


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
    parser.add_argument("--output", type=Path, default=HERE / "results", help="where the table is kept")
    options = parser.parse_args(arguments)
    chosen = [benchmark for benchmark in benchmarks if benchmark.name in options.only]
    if options.list:
        for benchmark in chosen:
            print(f"{benchmark.name:16} {benchmark.about} ({' '.join(benchmark.arguments)})")
        return 0
    from gptstar.environment import commit
    from gptstar.files import replace_text

    options.output.mkdir(parents=True, exist_ok=True)
    kept, revision, failed = options.output / "bench_cpu.json", commit(), 0
    entries: dict[str, dict] = json.loads(kept.read_text()) if kept.is_file() else {}
    for benchmark in chosen:
        start = time.perf_counter()
        found = run(benchmark, scripts)
        failed += found is None
        entries[benchmark.name] = {
            "command": " ".join(["python", f"benchmarks/{benchmark.name}.py", *benchmark.arguments]),
            "commit": revision,
            "hardware": hardware(),
            "seconds": round(time.perf_counter() - start, 1),
            "found": found,
        }
        entries = {name: entries[name] for name in names if name in entries}
        replace_text(kept, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
        replace_text(options.output / "bench_cpu.md", page(entries))
    print("\n" + in_columns([line for each in chosen for line in lines(each.name, entries[each.name])]))
    print(f"\n{options.output / 'bench_cpu.md'}")
    if options.output.resolve() == HERE / "results":  # not of a trial elsewhere
        readme.main()
    return int(failed > 0)


def hardware() -> str:
    """The machine and its libraries, and the day."""
    import torch

    from gptstar.environment import cpu_name

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    day = time.strftime("%Y-%m-%d")
    python = platform.python_version()
    return f"{cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB, torch {torch.__version__}, Python {python}, {day}"


if __name__ == "__main__":
    sys.exit(main())
