"""The head and its loss, forward and backward: time and peak memory here, in torch's own, and with whole logits.

    python benchmarks/loss.py [--tokens 2048] [--width 768] [--vocabulary 50304] [--rounds 5] [--json FILE]

Raced are `linear_cross_entropy` of gptstar, torch's `F.linear_cross_entropy` in chunks (from torch 2.13), and plain
`F.cross_entropy(F.linear(hidden, weight))`; beside them the three matmuls that none of them can do without, over all
tokens at once and by the faster of torch's libraries, as the limit. In fp32 on a CPU; on a GPU, with 32768 tokens,
under bf16 autocast, the weights in fp32. Each is a process of its own and all take turns. Before the first turn each
has to match float64 in loss and gradients, on a small size. Peak memory is what the turns need beyond hidden states,
weights and targets, gradients included: resident memory on a CPU, allocated tensors on a GPU. Medians over the rounds
with their range; ratios last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestants import Contestant, serve

from gptstar.allocator import keep_freed_memory

CONTESTANTS = {
    "ours": "linear_cross_entropy, here",
    "torch": "F.linear_cross_entropy, chunked",
    "plain": "F.cross_entropy of F.linear",
    "matmuls": "the three matmuls alone",
}
SMALL = (96, 64, 512)  # tokens, width, vocabulary
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}  # relative, fp32 and bf16


def loss_function(name: str) -> Callable[[Any, Any, Any], Any] | None:
    """(hidden_NC, weight_VC, target_N) -> mean cross-entropy in nats; None where this torch has no such function."""
    import torch
    import torch.nn.functional as F

    from gptstar.model.loss import linear_cross_entropy

    if name == "ours":
        return linear_cross_entropy
    if name == "plain":
        return lambda hidden, weight, target: F.cross_entropy(F.linear(hidden, weight), target)
    if not hasattr(F, "linear_cross_entropy"):
        return None
    chunked = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, target: F.linear_cross_entropy(hidden, weight, target, options=chunked)


def worker(name: str, device_name: str, tokens: int, width: int, vocabulary: int) -> None:
    """One contestant; the first request checks it, "turn" answers seconds, "memory" the peak in bytes."""
    keep_freed_memory()  # before torch is imported
    import torch

    from gptstar.device import autocast

    device = torch.device(device_name)
    precision = "bf16" if device.type == "cuda" else "fp32"

    def inputs(n_token: int, n_channel: int, n_row: int) -> tuple:
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(n_token, n_channel, device=device, generator=generator)
        weight = torch.randn(n_row, n_channel, device=device, generator=generator) / n_channel**0.5
        target = torch.randint(n_row, (n_token,), device=device, generator=generator)
        return hidden.requires_grad_(), weight.requires_grad_(), target

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if name == "matmuls":
        work = matmuls(inputs(tokens, width, vocabulary), autocast(precision, device))
        missing, error = False, 0.0
    else:
        function = loss_function(name)
        missing, error = function is None, 0.0
        if function is not None:
            error = largest_error(function, inputs(*SMALL), autocast(precision, device))
            hidden, weight, target = inputs(tokens, width, vocabulary)

        def work() -> None:
            assert function is not None
            with autocast(precision, device):
                loss = function(hidden, weight, target)
            loss.backward()
            hidden.grad = weight.grad = None

    before = start_of_memory(device)

    def answer(request: str) -> Any:
        if request == "check":
            return {"missing": missing, "error": error}
        if request == "memory":
            return peak_memory(device) - before
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - start

    serve(answer)


def matmuls(given: tuple, precision: Any) -> Callable[[], None]:
    """Logits, and the gradients of hidden states and weights from a gradient of the logits."""
    import torch

    from gptstar.model.matmul import matmul

    hidden, weight, _ = given
    with torch.no_grad(), precision:
        logits = torch.nn.functional.linear(hidden, weight)
    hidden, weight = hidden.detach().to(logits.dtype), weight.detach().to(logits.dtype)

    def work() -> None:
        # All three are kept to the end: freed one by one they cost page faults, which are no part of the limit.
        products = [matmul(hidden, weight.t()), matmul(logits, weight), matmul(hidden.t(), logits)]
        del products

    return work


def largest_error(function: Callable[[Any, Any, Any], Any], given: tuple, precision: Any) -> float:
    """Of the loss and both gradients, against plain cross-entropy in float64: norm of the difference / norm."""
    import torch
    import torch.nn.functional as F

    hidden, weight, target = given
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = F.cross_entropy(exact_hidden @ exact_weight.t(), target)
    exact.backward()
    with precision:
        loss = function(hidden, weight, target)
    loss.backward()
    pairs = ((loss.detach(), exact.detach()), (hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad))
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs if torch.is_tensor(a))


def start_of_memory(device: Any) -> int:
    """Bytes in use now; the peak counts from here."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of resident memory
    return resident("VmRSS")


def peak_memory(device: Any) -> int:
    """The most bytes that were in use since `start_of_memory`."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def race(options: argparse.Namespace) -> dict:
    """{contestant: seconds of each round, peak bytes} of those this torch has. Ends at one that is wrong."""
    sizes = [str(size) for size in (options.tokens, options.width, options.vocabulary)]
    racers, found = {}, {}
    for name in CONTESTANTS:
        racer = Contestant(__file__, name, options.device, *sizes)
        check = racer.turn("check")
        if check["error"] > TOLERANCE[options.device]:
            raise SystemExit(f"{CONTESTANTS[name]} is off by {check['error']:.1e} from float64")
        if check["missing"]:
            racer.close()
            continue
        racers[name] = racer
        found[name] = {"error": check["error"], "seconds": []}
    for number in range(options.rounds + 1):
        for name, racer in racers.items():
            seconds = racer.turn("turn")
            if number:  # the first round warms up
                found[name]["seconds"].append(seconds)
    for name, racer in racers.items():
        found[name]["bytes"] = racer.turn("memory")
        racer.close()
    return found


def main() -> None:
    """The race and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--tokens", type=int, help="default: 2048, on a GPU 32768")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, device, *sizes = options.worker
        worker(name, device, *map(int, sizes))
        return
    import torch

    from gptstar.environment import commit, cpu_name

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.tokens = options.tokens or (32768 if options.device == "cuda" else 2048)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else cpu_name()
    about: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "hardware": hardware, "commit": commit()}
    about |= {"torch": torch.__version__, "sizes": [options.tokens, options.width, options.vocabulary]}
    print(f"{hardware}, torch {torch.__version__}, commit {about['commit']}, {options.rounds} rounds")
    print(f"{options.tokens} tokens x {options.width} channels x {options.vocabulary} rows of the vocabulary")
    found = race(options)
    for name, title in CONTESTANTS.items():
        if name not in found:
            print(f"  {title:34} missing in torch {torch.__version__}")
            continue
        ms = [1000 * seconds for seconds in found[name]["seconds"]]
        spread = f"({min(ms):.1f} - {max(ms):.1f})"
        memory = "" if name == "matmuls" else f"   peak {found[name]['bytes'] / 2**20:6.0f} MiB"
        print(f"  {title:34} {statistics.median(ms):8.1f} ms {spread:20}{memory}")
    ratios = compare(found)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"contestants": found, "ratios": ratios}, indent=1) + "\n")


def compare(found: dict) -> dict[str, float]:
    """Ours against the others, from the times of the same round; above 1: ours is faster, or needs less memory."""
    ours, ratios = found["ours"], {}
    for peer in ("plain", "torch"):
        if peer in found:
            pairs = zip(found[peer]["seconds"], ours["seconds"], strict=True)
            ratios[f"time, {peer} / ours"] = statistics.median(theirs / mine for theirs, mine in pairs)
            ratios[f"memory, {peer} / ours"] = found[peer]["bytes"] / ours["bytes"]
    pairs = zip(found["matmuls"]["seconds"], ours["seconds"], strict=True)
    ratios["time, matmuls / ours"] = statistics.median(limit / mine for limit, mine in pairs)
    return ratios


if __name__ == "__main__":
    main()
