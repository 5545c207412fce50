"""CPU training step in fp32: GPT-2 Small and GPT-127* here against transformers' GPT-2 Small.

    python benchmarks/train_step.py [--rounds 5] [--batch 4] [--length 512]

Each contestant is a process of its own, so that transformers runs with the allocator it gets by default; a second
one runs it with ours (`keep_freed_memory`), which tells how much of the difference that is. All take turns, one step
each a round, with the matmul peak measured in the same round. A step is forward, backward, clipping and AdamW on the
same token numbers. MFU = (6 N + 12 L d_attention T) tokens / seconds / peak; reported are medians over the rounds
with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from gptstar.allocator import keep_freed_memory

CONTESTANTS = {
    "gpt2_small": "GPT-2 Small, GPT*",
    "gpt127": "GPT-127*, GPT*",
    "transformers": "GPT-2 Small, transformers",
    "transformers+kept": "GPT-2 Small, transformers with our allocator setting",
}


def worker(name: str, batch: int, length: int) -> None:
    """Takes a step for every line on stdin and prints its seconds."""
    if name != "transformers":
        keep_freed_memory()  # before torch is imported
    import torch

    from gptstar.configuration import preset
    from gptstar.model.matmul import fast_gradients
    from gptstar.training.optimizers import OptimizerConfig, build_optimizer
    from gptstar.training.throughput import measure_matmul_peak

    if name == "peak":
        step = None
    else:
        torch.manual_seed(0)
        tokens = torch.randint(0, 50257, (batch, length + 1))
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if name.startswith("transformers"):
            import transformers

            config = transformers.GPT2Config(attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
            model = transformers.GPT2LMHeadModel(config).train()

            def loss():
                logits = model(x).logits  # the loss as nanoGPT and most scripts write it
                return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        else:
            from gptstar.model.transformer import GPT

            model = GPT(preset(name))

            def loss():
                return model(x, y)

        optimizer = build_optimizer(model, OptimizerConfig(lr=6e-4))

        ours = nullcontext if name.startswith("transformers") else fast_gradients  # as the trainer does

        def step():
            with ours():
                loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    print("ready", flush=True)
    for _ in sys.stdin:
        if step is None:
            print(measure_matmul_peak(torch.device("cpu"), size=4096, repeats=3), flush=True)
            continue
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


class Contestant:
    """A worker process that does one thing when asked and says a number."""

    def __init__(self, name: str, batch: int, length: int) -> None:
        command = [sys.executable, __file__, "--worker", name, "--batch", str(batch), "--length", str(length)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def turn(self) -> float:
        """Seconds of a step, or FLOP/s of the matmul."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a contestant ended early (out of memory?): lower --batch")
        return line


def main() -> None:
    """The race and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.batch, options.length)
        return
    from gptstar.configuration import preset
    from gptstar.environment import commit, cpu_name
    from gptstar.model.describe import flops_per_token

    revision = commit()  # of the code that runs, whatever is committed meanwhile
    n_token = options.batch * options.length
    flops = {
        name: n_token * flops_per_token(preset("gpt127" if name == "gpt127" else "gpt2_small"), options.length)
        for name in CONTESTANTS
    }
    peak = Contestant("peak", 1, 1)
    racers = {name: Contestant(name, options.batch, options.length) for name in CONTESTANTS}
    for racer in racers.values():
        racer.turn()  # warms up
        racer.turn()
    mfu: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(peak.turn())
        for name, racer in racers.items():
            seconds[name].append(racer.turn())
        peaks.append(peak.turn())
        limit = max(peaks[-2:])
        for name in CONTESTANTS:
            mfu[name].append(flops[name] / seconds[name][-1] / limit)
    print(f"{cpu_name()}, commit {revision}, {options.batch} x {options.length} tokens, {options.rounds} rounds")
    print(f"matmul peak {statistics.median(peaks) / 1e9:.0f} GFLOP/s ({min(peaks) / 1e9:.0f} - {max(peaks) / 1e9:.0f})")
    for name, title in CONTESTANTS.items():
        rate = n_token / statistics.median(seconds[name])
        spread = f"{min(mfu[name]):.2f} - {max(mfu[name]):.2f}"
        print(f"{title:52} {rate:6.0f} tokens/s  MFU {statistics.median(mfu[name]):.2f} ({spread})")
    ratios = {}
    for name in ("gpt2_small", "gpt127"):
        for peer in ("transformers+kept", "transformers"):
            pairs = [a / b for a, b in zip(mfu[name], mfu[peer], strict=True)]
            ratios[f"{name} / {peer}"] = statistics.median(pairs)
            spread = f"{min(pairs):.2f} - {max(pairs):.2f}"
            print(f"MFU ratio {name} / {peer}: {statistics.median(pairs):.2f} ({spread})")
    if options.json:
        result = {
            "command": "python " + " ".join(sys.argv),
            "cpu": cpu_name(),
            "commit": revision,
            "batch": options.batch,
            "length": options.length,
        }
        result |= {"peak_flops": peaks, "mfu": mfu, "seconds": seconds, "median_ratios": ratios}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
