"""Memory and traffic of a training step on several ranks, beside the formulas of docs/scaling.md.

    python benchmarks/scaling.py [--model gpt127] [--ranks 1 2 4] [--json FILE]

Each rank is a process on this CPU, with gloo over the loopback device, in fp32 with AdamW. It reads a sequence of 16
tokens a step, so that activations do not count. Memory is the peak of what a process has resident in a step, beyond
what it had before the model; traffic is what the loopback device counts, a rank and step. Nothing else should use it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from gptstar.configuration import preset
from gptstar.environment import commit, cpu_name
from gptstar.model.describe import parameter_count

LENGTH, STEPS = 16, 2
# glibc keeps freed blocks of less than 32 MB, a layer of GPT-2 Small among them: they would be counted as held.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def expected(model: str, parallel: str, n: int) -> tuple[float, float]:
    """Bytes in memory, and sent in a step, by a rank: docs/scaling.md explains them."""
    config = preset(model)
    whole, table = 4 * parameter_count(config), 4 * config.padded_vocab_size * config.d_model
    block = (whole - table) / config.n_layer
    if parallel == "fsdp":
        # The table is gathered once; gloo scatters a sum by making it everywhere, which NCCL does at half of that.
        return 4 * whole / n + 4 * table + 4 * block, (n - 1) / n * (4 * whole - table)
    if parallel == "tensor":
        sublayers = config.n_layer * (1 if config.block == "parallel_shared" else 2)
        sums = 2 * sublayers * 4 * LENGTH * config.d_model
        return 4 * (table + (whole - table) / n) + 3 * table, 2 * (n - 1) / n * sums
    return 4 * whole + 3 * table, 2 * (n - 1) / n * whole


def work(model: str) -> None:
    """One rank: prints its peak memory and, of all ranks, the traffic of a step."""
    import torch

    from gptstar.model.transformer import GPT
    from gptstar.training.optimizers import OptimizerConfig, build_optimizer
    from gptstar.training.spread import pick_spread
    from gptstar.training.world import open_world

    torch.set_num_threads(1)
    parallel = os.environ["PARALLEL"]
    together = int(os.environ["WORLD_SIZE"]) if parallel == "tensor" else 1
    with open_world("ddp" if together > 1 else parallel, "cpu", 600, together) as world:
        config = preset(model)
        world.wait()
        torch.distributed.all_reduce(torch.zeros(1))
        before = resident("VmRSS")
        spread = pick_spread(world)(GPT(config), world, "fp32", compiled=False)
        optimizer = build_optimizer(spread.model, OptimizerConfig())
        tokens = torch.randint(config.vocab_size, (1, LENGTH))

        def step() -> None:
            with spread.accumulating(last=True):
                spread.run(tokens, tokens).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()  # makes the moments
        world.wait()
        sent = loopback()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(STEPS):
            step()
        world.wait()
        sent = loopback() - sent
        print(json.dumps({"memory": resident("VmHWM") - before, "sent": sent / STEPS / world.size}), flush=True)
        world.wait()


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def loopback() -> int:
    """Bytes the loopback device has sent."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def measure(model: str, parallel: str, n: int) -> dict:
    """The largest memory of n ranks, and their traffic."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(n):
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in known.items()} | {"PARALLEL": parallel} | MALLOC
        command = [sys.executable, __file__, "--model", model, "--worker"]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {"memory": max(f["memory"] for f in found), "sent": max(f["sent"] for f in found)}


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt127")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model)
        return
    rows = []
    print(f"{options.model} on {cpu_name()}, commit {commit()}; MiB, measured / formula")
    for parallel in ("ddp", "fsdp", "tensor"):
        for n in options.ranks[parallel == "tensor" :]:
            found = measure(options.model, parallel, n)
            memory, sent = expected(options.model, parallel, n)
            rows.append({"parallel": parallel, "ranks": n, **found, "memory_formula": memory, "sent_formula": sent})
            line = f"{parallel:5} {n} ranks: memory {found['memory'] / 2**20:7.0f} / {memory / 2**20:7.0f}"
            print(f"{line}, sent {found['sent'] / 2**20:7.0f} / {sent / 2**20:7.0f}", flush=True)
    if options.json:
        result = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": commit(), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result | {"model": options.model}, indent=1))
    worst = max(max(r["memory"] / r["memory_formula"], r["memory_formula"] / r["memory"]) for r in rows)
    print(f"measured memory against the formula, worst ratio: {worst:.2f}")


if __name__ == "__main__":
    main()
