"""The GPU figures in one go: training throughput and MFU, GPT-127* against GPT-2 Small, attention kernels, decoding.

    python benchmarks/gpu_train.py [--only ROW ...] [--budget-seconds 450] [--json FILE]
    python benchmarks/gpu_train.py --device cpu --tiny      the whole logic on tiny models

Training rows take steps as the trainer does: bf16 autocast, torch.compile(dynamic=False), one microbatch a step,
clipping, fused AdamW, on random tokens that are already on the device. The microbatch is the largest of
--microbatch-tokens that fits. After warm-up steps come blocks of steps with a synchronisation only at their ends;
tokens/s are the median of the blocks with their range, MFU = (6 N + 12 L d_attention T) tokens/s / data sheet's peak,
memory the most bytes of tensors. Decoding is greedy, one sequence of GPT-127* in bf16 up to its context, each step a
recorded CUDA graph, of plain and of compiled code; the kernels are benchmarks/attention.py's business.

Each row is a process of its own. One that fails is reported and the others go on; what the time budget does not reach
is reported as skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptstar.configuration import preset
from gptstar.device import autocast, pick_precision
from gptstar.environment import commit, cpu_name
from gptstar.generation.decoding import Decoder
from gptstar.model.config import ModelConfig
from gptstar.model.describe import flops_per_token
from gptstar.model.transformer import GPT
from gptstar.training.optimizers import OptimizerConfig, build_optimizer
from gptstar.training.throughput import peak_flops, peak_gib

ATTENTION = Path(__file__).with_name("attention.py")
TINY: dict[str, Any] = {"vocab_size": 300, "n_layer": 2, "d_model": 32, "n_head": 2, "d_head": 16, "d_ff": 64}
TRAINED = {  # row: (preset, tokens a sequence)
    "gpt127": ("gpt127", 512),
    "gpt2_small_1024": ("gpt2_small", 1024),
    "gpt303": ("gpt303", 512),
    "gpt2_small_512": ("gpt2_small", 512),
}
DECODED = {"decode": False, "decode_compiled": True}  # row: whether the step is compiled
ROWS = ("gpt127", "gpt2_small_1024", "decode", "gpt303", "gpt2_small_512", "decode_compiled", "attention")
TARGETS = {  # row and figure: at least
    ("gpt127", "tokens_per_second"): 650_000,
    ("gpt127", "mfu"): 0.50,
    ("gpt303", "mfu"): 0.50,
    ("decode", "tokens_per_second"): 2000,
    ("decode_compiled", "tokens_per_second"): 2000,
}
RATIO_TARGET = 1.4  # GPT-127* at 512 tokens / GPT-2 Small at 1024, tokens/s


def model_config(name: str, options: argparse.Namespace) -> ModelConfig:
    """A preset, or something tiny with its architecture."""
    return preset(name, **TINY) if options.tiny else preset(name)


def train(row: str, options: argparse.Namespace) -> dict:
    """A training row, with the largest microbatch that fits."""
    name, length = TRAINED[row]
    too_large: list[int] = []
    for n_token in options.microbatch_tokens:
        microbatch = max(1, n_token // length)
        try:
            return train_with(model_config(name, options), length, microbatch, options) | {"too_large": too_large}
        except torch.OutOfMemoryError:
            too_large.append(microbatch)
        # Here, where the exception and with it the failed step's tensors are gone.
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    raise torch.OutOfMemoryError(f"no microbatch fits, of {too_large} sequences")


def train_with(config: ModelConfig, length: int, microbatch: int, options: argparse.Namespace) -> dict:
    """Steps of one microbatch each."""
    device = torch.device(options.device)
    precision = pick_precision("auto", device)
    torch.set_float32_matmul_precision("high")  # these three as the trainer
    torch.manual_seed(0)
    model = GPT(config).to(device)
    optimizer = build_optimizer(model, OptimizerConfig())
    compiled = torch.compile(model, dynamic=False) if device.type == "cuda" else model
    x, y = torch.randint(config.vocab_size, (2, microbatch, length), device=device)

    def steps(count: int) -> float:
        """Their seconds."""
        synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            with autocast(precision, device):
                loss = compiled(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        return time.perf_counter() - start

    compiling = steps(1)
    steps(options.warmup)
    rates = [options.steps * microbatch * length / steps(options.steps) for _ in range(options.blocks)]
    peak, flops = peak_flops(device), flops_per_token(config, length)
    return {
        "microbatch": microbatch,
        "length": length,
        "precision": precision,
        "first_step_seconds": compiling,
        "tokens_per_second": statistics.median(rates),
        "blocks": rates,
        "flops_per_token": flops,
        "mfu": statistics.median(rates) * flops / peak if peak else None,
        "memory_gib": peak_gib(device),
    }


@torch.inference_mode()
def decode(row: str, options: argparse.Namespace) -> dict:
    """One sequence, greedily, to the end of the model's context, several times."""
    device = torch.device(options.device)
    config = replace(model_config("gpt127", options), context=64 if options.tiny else 512)
    torch.manual_seed(0)
    model = GPT(config).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    decoder = Decoder(model, compiled=DECODED[row] and device.type == "cuda")
    cache = decoder.new_cache(1, config.context)
    prompt = torch.randint(config.vocab_size, (1, 16), device=device)
    first = decoder.read(prompt, cache).argmax(-1)

    def rest() -> float:
        """Tokens a second."""
        cache.length, token = prompt.shape[1], first
        n_token = config.context - cache.length
        synchronize(device)
        start = time.perf_counter()
        for _ in range(n_token):
            token = decoder(token, cache).argmax(-1)
        synchronize(device)
        return n_token / (time.perf_counter() - start)

    rest()  # compiles and records
    rates = [rest() for _ in range(options.blocks)]
    memory = peak_gib(device)
    return {"tokens_per_second": statistics.median(rates), "blocks": rates, "memory_gib": memory}


def synchronize(device: torch.device) -> None:
    """Waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(row: str, options: argparse.Namespace, answer: Any) -> None:
    """A row's process: sends what it found, or why it could not."""
    try:
        device = torch.device(options.device)
        hardware = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
        found = (train if row in TRAINED else decode)(row, options)
        answer.send(found | {"hardware": hardware})
    except Exception as error:
        answer.send({"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]})


def apart(row: str, options: argparse.Namespace, seconds: float) -> dict:
    """`measured` in a process of its own, for so long at most."""
    # Forking spares it the imports, but what is forked cannot start CUDA if anything here has asked for it.
    context: Any = multiprocessing.get_context("fork" if options.device == "cpu" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(row, options, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return {"skipped": "the time budget ended in it"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"error": f"its process ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def attention(options: argparse.Namespace, seconds: float) -> dict:
    """benchmarks/attention.py, whose table goes to the terminal and whose JSON stays beside ours."""
    if not ATTENTION.is_file() or options.device == "cpu":
        return {"skipped": "needs benchmarks/attention.py and a GPU"}
    target = options.json.with_name(f"{options.json.stem}_attention.json") if options.json else Path(os.devnull)
    command = [sys.executable, str(ATTENTION), "--json", str(target)]
    try:
        status = subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return {"skipped": "the time budget ended in it"}
    return {"error": f"exit status {status}"} if status else {"written": target.name}


def line(row: str, found: dict) -> str:
    """A row of the table."""
    if "error" in found or "skipped" in found or "written" in found:
        state = next(key for key in ("error", "skipped", "written") if key in found)
        return f"{row:16} {'FAILED' if state == 'error' else state}: {found[state]}"
    rates = found["blocks"]
    text = f"{row:16} {found['tokens_per_second']:10,.0f} tokens/s ({min(rates):,.0f} - {max(rates):,.0f})"
    if "microbatch" in found:
        mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.3f}"
        text += f"  MFU {mfu}  microbatch {found['microbatch']} x {found['length']}"
    return f"{text}  {found['memory_gib']:.2f} GiB"


def verdicts(found: dict[str, dict]) -> list[dict]:
    """Each target that was measured: {"what", "found", "target", "holds"}."""
    pairs = [(f"{row}, {key}", found.get(row, {}).get(key), target) for (row, key), target in TARGETS.items()]
    star, gpt2 = (found.get(row, {}).get("tokens_per_second") for row in ("gpt127", "gpt2_small_1024"))
    pairs.append(("gpt127 / gpt2_small_1024, tokens/s", star / gpt2 if star and gpt2 else None, RATIO_TARGET))
    return [
        {"what": what, "found": value, "target": target, "holds": value >= target}
        for what, value, target in pairs
        if value is not None
    ]


def main() -> None:
    """All rows, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--microbatch-tokens", type=int, nargs="+", help="default: 131072 65536 32768, largest first")
    parser.add_argument("--warmup", type=int, help="steps after the first; default: 5")
    parser.add_argument("--steps", type=int, help="of a block; default: 10")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--budget-seconds", type=float, default=450)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to try this script out")
    parser.add_argument("--json", type=Path, help="also write the results here, row by row")
    options = parser.parse_args()
    options.microbatch_tokens = options.microbatch_tokens or ([1024] if options.tiny else [131072, 65536, 32768])
    options.warmup = (1 if options.tiny else 5) if options.warmup is None else options.warmup
    options.steps = options.steps or (1 if options.tiny else 10)
    about = {"command": "python " + " ".join(sys.argv), "commit": commit(), "torch": torch.__version__}
    began = time.perf_counter()
    found: dict[str, dict] = {}
    for row in (row for row in ROWS if row in options.only):
        left = options.budget_seconds - (time.perf_counter() - began)
        if left <= 0:
            found[row] = {"skipped": "the time budget was spent"}
        elif row == "attention":
            found[row] = attention(options, left)
        else:
            found[row] = apart(row, options, left)
        print(f"[{time.perf_counter() - began:4.0f} s] {line(row, found[row])}", flush=True)
        about["hardware"] = about.get("hardware") or found[row].get("hardware")
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            record = about | {"rows": found, "targets": verdicts(found)}
            options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{about['hardware']}, torch {about['torch']}, commit {about['commit']}: {about['command']}")
    for row, values in found.items():
        print(line(row, values))
    for verdict in verdicts(found):
        holds = "holds" if verdict["holds"] else "NOT reached"
        print(f"{verdict['what']}: {verdict['found']:,.2f} (target {verdict['target']:,}: {holds})")
    if any("error" in values for values in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
