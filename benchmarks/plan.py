"""Planned against measured: training steps of the small presets on this CPU, and what the planner says of them.

    python benchmarks/plan.py [--rounds 8] [--steps 5] [--threads N]
    python benchmarks/plan.py --published                  # runs nothing: the table of docs/lab/plan.md

Each preset is a process of its own; they take turns, so many steps each a round. Before and after each turn the
machine is measured as `hardware=this` measures it, for it is not as fast in one minute as in the next; what is planned
is planned for the mean of the two. A step is forward, backward, clipping and AdamW on 8 sequences, as in train.py
without its reading and writing. Reported are medians over the rounds with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from contestants import Contestant, serve

from gptstar.allocator import keep_freed_memory

LENGTHS = {"star_3m": 256, "gpt2_3m": 256, "star_9m": 256, "gpt2_9m": 256}
BATCH = 8


def worker(name: str) -> None:
    """Takes as many steps as it is asked for and tells the median's seconds; or measures the machine."""
    keep_freed_memory()  # before torch is imported
    import torch

    from gptstar.configuration import preset
    from gptstar.lab.planning.hardware import Hardware, measured
    from gptstar.model.matmul import fast_gradients
    from gptstar.model.transformer import GPT
    from gptstar.training.optimizers import OptimizerConfig, build_optimizer

    if name == "hardware":
        serve(lambda _: asdict(measured(Hardware(name="this", device="cpu"))))
        return
    torch.manual_seed(0)
    config = preset(name)
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTHS[name] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model = GPT(config)
    optimizer = build_optimizer(model, OptimizerConfig())

    def steps(n: int) -> float:
        found = []
        for _ in range(n):
            start = time.perf_counter()
            with fast_gradients():  # as the trainer does
                model(x, y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    serve(steps)


def between(before: dict, after: dict):
    """The machine in the middle of two measurements."""
    from gptstar.lab.planning.hardware import Efficiency, Hardware

    def mean(key: str) -> float:
        return (before[key] + after[key]) / 2

    made = Hardware(**{**after, "efficiency": Efficiency()})
    peaks = {"fp32": (before["peaks"]["fp32"] + after["peaks"]["fp32"]) / 2}
    return replace(made, peaks=peaks, bandwidth=mean("bandwidth"), functions=mean("functions"))


def print_published() -> None:
    """Planned beside published costs, in Markdown."""
    from gptstar.configuration import preset
    from gptstar.lab.planning.plan import plan
    from gptstar.lab.planning.published import PUBLISHED
    from gptstar.plan import load_hardware
    from gptstar.training.config import TrainConfig, TrainerConfig

    print("| | published | implied MFU | planned, as they did | planned, here |\n|---|---|---|---|---|")
    for each in PUBLISHED:
        model, machine = preset(each.model), load_hardware(each.hardware)
        theirs, ours = (plan(each.configuration(model, as_they_did), machine) for as_they_did in (True, False))
        ratio = theirs.device_hours / each.device_hours
        mfu = each.implied_mfu(theirs.flops_per_token, machine.peak("fp16"))
        print(
            f"| {each.name} | {each.device_hours:.0f} GPU-hours | {mfu:.1%} "
            f"| {theirs.device_hours:.0f} ({ratio:.2f} x) | {ours.device_hours:.0f} |"
        )
    # modded-nanogpt's plain GPT-2, track 3
    rate, machine = 490e3, load_hardware("h200")
    trainer = TrainerConfig(batch_size=512, microbatch=64, sequence_length=1024, max_steps=1, precision="bf16")
    found = plan(TrainConfig(model=preset("gpt2_small"), trainer=trainer), machine)
    print(
        f"| GPT-2 Small's shape, 64 x 1024, H200, bf16, compiled | {rate / 1e3:.0f}k tokens/s "
        f"| {rate * found.flops_per_token / machine.peak('bf16'):.1%} | "
        f"| {found.tokens_per_second / 1e3:.0f}k tokens/s ({found.tokens_per_second / rate:.2f} x) |"
    )


def main() -> None:
    """The turns and their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of a preset in a round")
    parser.add_argument("--threads", type=int, help="of every process; by default as many as cores")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--published", action="store_true", help="planned beside published costs, and nothing else")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    if options.published:
        print_published()
        return
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from gptstar.configuration import preset
    from gptstar.environment import commit, cpu_name
    from gptstar.lab.planning.plan import plan
    from gptstar.training.config import TrainConfig, TrainerConfig

    revision = commit()  # of the code that runs, whatever is committed meanwhile
    machine = Contestant(__file__, "hardware")
    racers = {name: Contestant(__file__, name) for name in LENGTHS}
    for racer in racers.values():
        racer.turn(2)  # warms up
    planned: dict[str, list[float]] = {name: [] for name in LENGTHS}
    seconds: dict[str, list[float]] = {name: [] for name in LENGTHS}
    parts: dict[str, dict[str, float]] = {}
    machines = [machine.turn()]
    for _ in range(options.rounds):
        for name, racer in racers.items():
            seconds[name].append(racer.turn(options.steps))
            machines.append(machine.turn())
            trainer = TrainerConfig(batch_size=BATCH, max_steps=40, sequence_length=LENGTHS[name], device="cpu")
            found = plan(TrainConfig(model=preset(name), trainer=trainer), between(*machines[-2:]))
            planned[name].append(found.step_seconds)
            parts[name] = {part: p.seconds / found.step_seconds for part, p in found.parts.items()}
    threads = options.threads or os.cpu_count()
    print(f"{cpu_name()}, {threads} threads, commit {revision}, {options.rounds} rounds of {options.steps} steps")
    for key, unit in (("bandwidth", "GB/s"), ("functions", "G exponentials/s")):
        values = [each[key] / 1e9 for each in machines]
        print(f"{key} {statistics.median(values):.1f} {unit} ({min(values):.1f} - {max(values):.1f})")
    peaks = [each["peaks"]["fp32"] / 1e9 for each in machines]
    print(f"matmul peak {statistics.median(peaks):.0f} GFLOP/s ({min(peaks):.0f} - {max(peaks):.0f})")
    ratios = {}
    for name in LENGTHS:
        each = [p / s for p, s in zip(planned[name], seconds[name], strict=True)]
        ratios[name] = statistics.median(each)
        print(
            f"{name:10} planned {statistics.median(planned[name]) * 1e3:6.1f} ms, measured "
            f"{statistics.median(seconds[name]) * 1e3:6.1f} ms a step; planned / measured {ratios[name]:.2f} "
            f"({min(each):.2f} - {max(each):.2f})"
        )
    if options.json:
        result = {
            "command": "python " + " ".join(sys.argv),
            "cpu": cpu_name(),
            "threads": threads,
            "commit": revision,
            "batch": BATCH,
            "lengths": LENGTHS,
            "hardware": [
                {"peak": m["peaks"]["fp32"], **{k: m[k] for k in ("bandwidth", "functions")}} for m in machines
            ],
            "planned_seconds": planned,
            "measured_seconds": seconds,
            "planned_shares": parts,
            "median_ratios": ratios,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
