"""Seconds from the command line to something useful: import, --help, the first training step.

    python benchmarks/startup.py [--repeats 3] [--json FILE]

The first step counts from starting the process to its line in metrics.jsonl, with the default configuration, once
with an empty corpus cache (reads, trains the tokenizer, tokenises) and once with a full one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptstar.environment import commit, cpu_name

ROOT = Path(__file__).resolve().parents[1]


def whole(*arguments: str) -> float:
    """Seconds a Python command takes to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(run: Path, cache: Path) -> float:
    """Seconds until train.py has taken its first step; it is stopped then."""
    command = [sys.executable, "train.py", f"run_dir={run}", f"data.cache_dir={cache}"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit("train.py ended before its first step")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return seconds


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    repeats, revision = options.repeats, commit()
    rows: dict[str, list[float]] = {
        "python -c 'import gptstar'": [whole("-c", "import gptstar") for _ in range(repeats)],
        "python -c 'import gptstar; gptstar.GPT'": [whole("-c", "import gptstar; gptstar.GPT") for _ in range(repeats)],
        "python train.py --help": [whole("train.py", "--help") for _ in range(repeats)],
    }
    fresh, cached = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            fresh.append(first_step(Path(name, "a"), Path(name, "cache")))
            cached.append(first_step(Path(name, "b"), Path(name, "cache")))
    rows["train.py to its first step, corpus not cached"] = fresh
    rows["train.py to its first step, corpus cached"] = cached
    for what, seconds in rows.items():
        print(f"{what:48} {statistics.median(seconds):5.1f} s  ({min(seconds):.1f} - {max(seconds):.1f})")
    if options.json:
        about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
