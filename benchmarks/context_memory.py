"""Peak memory of one perplexity window by its length, in pieces (as the lab reads it) and whole.

    python benchmarks/context_memory.py [--model gpt303] [--contexts 1024 2048 4096 8192] [--whole 1024 2048 4096]

Random weights in fp32 on the CPU; every measurement is a process of its own, because peak resident memory never falls.
The growth is what a token more costs: constant where memory is linear in the context, doubling with it where it is
quadratic (ALiBi's bias alone is heads * context^2 numbers when a window is read whole).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from gptstar.allocator import keep_freed_memory


def measure(name: str, context: int, whole: bool) -> tuple[float, float]:
    """(GiB before the window, peak GiB), of this process."""
    keep_freed_memory()  # before torch is imported
    import numpy as np
    import torch

    from gptstar.configuration import preset
    from gptstar.evaluation import windows
    from gptstar.model.transformer import GPT

    if whole:
        windows.SCORES = sys.maxsize
    torch.manual_seed(0)
    model = GPT(preset(name)).eval()
    before = peak()
    stream = np.random.default_rng(0).integers(0, model.config.vocab_size, context + 1)
    cut = windows.cut_windows(len(stream), context, context, "exact")
    nats = windows.score_windows(model, stream, cut, 1, lambda n: None)
    assert np.isfinite(nats[1:]).all()
    return before, peak()


def peak() -> float:
    """Peak resident memory in GiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if sys.platform.startswith("linux") else kib / 2**30  # bytes on macOS


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt303")
    parser.add_argument("--contexts", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--whole", type=int, nargs="*", default=[1024, 2048, 4096])
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.model, int(options.worker[0]), options.worker[1] == "whole")))
        return
    from gptstar.environment import commit, cpu_name

    revision = commit()  # of the code that runs, whatever is committed meanwhile
    print(f"{options.model}, fp32, {cpu_name()}, commit {revision}")
    print(f"{'how':7} {'context':>7} {'before':>9} {'peak':>9} {'growth a token':>15}")
    results = []
    for how, contexts in (("pieces", options.contexts), ("whole", options.whole)):
        last: tuple[int, float] | None = None
        for context in contexts:
            command = [sys.executable, __file__, "--model", options.model, "--worker", str(context), how]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                reason = run.stderr.strip().splitlines()
                raise SystemExit(f"context {context}, {how}: {reason[-1] if reason else 'killed, out of memory?'}")
            before, most = json.loads(run.stdout)
            growth = f"{(most - last[1]) * 2**20 / (context - last[0]):11.0f} KiB" if last else ""
            last = context, most
            print(f"{how:7} {context:7} {before:5.2f} GiB {most:5.2f} GiB {growth:>15}", flush=True)
            results.append({"how": how, "context": context, "before_gib": before, "peak_gib": most})
    if options.json:
        about = {
            "command": "python " + " ".join(sys.argv),
            "model": options.model,
            "cpu": cpu_name(),
            "commit": revision,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
