"""Attention kernels for ALiBi, forward and backward: a race over head size x context on one GPU.

    python benchmarks/attention.py [--heads 64 128 192] [--contexts 512 1024 2048] [--kernels sdpa folded flex]
                                   [--documents] [--rounds 5] [--json FILE]

Queries, keys and values have 768 channels (12, 6 or 4 heads) and 32,768 tokens whatever the context, in bf16. Every
contestant is what a model runs. Its mask and bias are made beforehand, as a model makes them once for all layers; what
torch.compile makes of the rest is timed (dense and sdpa run uncompiled: they are torch's own calls). Variants, to learn
what an option is worth: "folded, no cuDNN" leaves SDPA only FlashAttention, "flex, torch's tiles" is FlexAttention with
the tiles that torch takes when it is told none, "causal, no bias" plain causal SDPA: a limit, no contestant.

Each is compared with dense in fp32, outputs and gradients, before it is timed; one that cannot run says why. They take
turns, a few calls each a round; reported are medians over the rounds. TFLOP/s count the half of the scores that
causality leaves, in 7 matmuls (2 forward, 5 backward); the ratio is the time beside the fastest contestant of the cell.
--documents: with the mask of packed documents of 300 tokens. On a CPU cells are tiny and in fp32: a check of this
script, not of kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gptstar.environment import commit, cpu_name
from gptstar.model.config import ModelConfig
from gptstar.model.flex import HOPPER_TILES, FlexAttention
from gptstar.model.folded import FoldedAttention
from gptstar.model.kernel_choice import KERNELS, pick_kernel
from gptstar.model.kernels import Case, DenseAttention, Kernel, SDPAttention, View
from gptstar.model.positions import SCHEMES

WIDTH, TOKENS, DOCUMENT = 768, 32_768, 300
CALLS = 4  # a round and contestant
TOLERANCE = 0.02  # norm of the difference to dense in fp32 as a share of the norm: a few roundings to bf16


class FoldedWithoutCuDNN(FoldedAttention):
    """Equal widths, so that SDPA takes FlashAttention."""

    allow_cudnn = False


class FlexWithTorchsTiles(FlexAttention):
    """Without the tiles of this project."""

    @staticmethod
    def tiles(view: View) -> dict[str, int | str | bool]:
        return {"ROWS_GUARANTEED_SAFE": True}

    @staticmethod
    def obstacle(case: Case) -> str | None:
        same = case.config.head_size in (64, 128) or case.config.head_size not in HOPPER_TILES
        return "apart from flex: these are its tiles" if same else FlexAttention.obstacle(case)


CONTESTANTS: dict[str, type[Kernel]] = {
    **KERNELS,
    "folded, no cuDNN": FoldedWithoutCuDNN,
    "flex, torch's tiles": FlexWithTorchsTiles,
}
LIMIT = "causal, no bias"
UNCOMPILED = ("dense", "sdpa", LIMIT)


@dataclass
class Cell:
    """One head size and context, and what was found there. seconds: of one forward and backward pass, a round each."""

    head_size: int
    n_token: int
    batch: int
    picked: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        """Seconds of those that ran."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Time beside the fastest contestant's."""
        best = min((seconds for name, seconds in self.medians.items() if name in CONTESTANTS), default=float("nan"))
        return {name: seconds / best for name, seconds in self.medians.items()}

    @property
    def flops(self) -> float:
        """Of one forward and backward pass: 7 matmuls of 2 B C T^2 FLOPs, half of them hidden."""
        return 7.0 * self.batch * WIDTH * self.n_token**2


def look(cell: Cell, device: torch.device, documents: bool = False, position: str = "alibi") -> View:
    """What the tokens of a training batch see."""
    n_head = WIDTH // cell.head_size
    config = ModelConfig(n_layer=1, d_model=WIDTH, n_head=n_head, d_head=cell.head_size, position=position)
    case = Case(config, SCHEMES[position](config), 0, device.type, cell.n_token, documents)
    slot = torch.arange(cell.n_token, device=device)
    starts = 97 * torch.arange(cell.batch, device=device)[:, None]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return View(case, slot, dtype, document_BT=(slot + starts) // DOCUMENT if documents else None)


def make_states(view: View, batch: int) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, (B, H, T, D) each."""
    torch.manual_seed(0)
    config = view.case.config
    shape = (batch, config.n_head, view.case.n_key, config.head_size)
    return [torch.randn(shape, device=view.slot.device, dtype=view.dtype) for _ in range(4)]


def make_pass(kernel: Kernel, states: list[Tensor], compiled: bool) -> Callable[[], list[Tensor]]:
    """A forward and backward pass: output and gradients."""
    *leaves, seed = (x.detach().clone() for x in states)
    for leaf in leaves:
        leaf.requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernel(q, k, v)

    run = torch.compile(attend, dynamic=False, fullgraph=True) if compiled else attend

    def work() -> list[Tensor]:
        output = run(*leaves)
        return [output, *torch.autograd.grad(output, leaves, seed)]

    return work


def difference(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest share that a difference has of what is exact, by norm, over the rows that `exact` has."""
    pairs = zip(found, exact, strict=True)
    return max(((a[: len(b)].float() - b).norm() / b.norm()).item() for a, b in pairs)


def time_calls(work: Callable[[], list[Tensor]], device: torch.device, calls: int = CALLS) -> float:
    """Seconds a call."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000 / calls


def race(cell: Cell, names: Collection[str], device: torch.device, rounds: int, documents: bool = False) -> None:
    """Fills the cell with seconds, or the reason why there are none, of each contestant named."""
    torch._dynamo.reset()  # every contestant is the same function to it, and it keeps a limited number
    view = look(cell, device, documents)
    states = make_states(view, cell.batch)
    first = None if view.document_BT is None else view.document_BT[:1]
    dense = DenseAttention(dataclasses.replace(view, dtype=torch.float32, document_BT=first))
    exact = make_pass(dense, [x[:1].float() for x in states], compiled=False)()
    runners = {}
    for name in names:
        obstacle = CONTESTANTS[name].obstacle(view.case)
        if obstacle is not None:
            cell.reasons[name] = f"cannot be used {obstacle}"
            continue
        try:
            work = make_pass(CONTESTANTS[name](view), states, device.type == "cuda" and name not in UNCOMPILED)
            error = difference(work(), exact)
        except Exception as failure:  # other people's compilers: whatever it is, the race goes on
            cell.reasons[name] = f"{type(failure).__name__}: {(str(failure).strip() or '-').splitlines()[0]}"
            continue
        if error <= TOLERANCE:
            runners[name] = work
        else:
            cell.reasons[name] = f"differs from dense by {error:.3f}"
    limit = SDPAttention(look(cell, device, position="none"))
    runners[LIMIT] = make_pass(limit, states, compiled=False)
    for work in runners.values():
        work()
    for _ in range(rounds):
        for name, work in runners.items():
            cell.seconds.setdefault(name, []).append(time_calls(work, device))


def table(cell: Cell) -> list[str]:
    """Lines of text, fastest first; the ratio is last."""
    lines = [f"head size {cell.head_size}, context {cell.n_token}, batch {cell.batch}; auto is {cell.picked}"]
    ratios = cell.ratios
    for name, seconds in sorted(cell.medians.items(), key=lambda item: item[1]):
        low, high = (1000 * f(cell.seconds[name]) for f in (min, max))
        spread, rate = f"({low:.2f} - {high:.2f})", cell.flops / seconds / 1e12
        lines.append(f"  {name:20} {1000 * seconds:8.2f} ms {spread:20} {rate:7.1f} TFLOP/s {ratios[name]:6.2f}")
    return lines + [f"  {name:20} {reason}" for name, reason in cell.reasons.items()]


def main() -> None:
    """The races and their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[64, 128, 192], help="channels a head")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--kernels", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    revision = commit()  # of the code that runs, whatever is committed meanwhile
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if device.type == "cuda" else ""
    print(f"{name}, commit {revision}, torch {torch.__version__}{cudnn}, {options.rounds} rounds of {CALLS} calls")
    cells = []
    for head_size in options.heads:
        for context in options.contexts if device.type == "cuda" else [64]:
            cell = Cell(head_size, context, max(1, TOKENS // context) if device.type == "cuda" else 2, "")
            cell.picked = pick_kernel(look(cell, device, options.documents).case)
            race(cell, options.kernels, device, options.rounds, options.documents)
            cells.append(cell)
            print("\n".join(table(cell)), flush=True)
    wins: dict[str, int] = {}
    for cell in cells:
        best = min((name for name in cell.seconds if name in CONTESTANTS), key=cell.medians.__getitem__, default="none")
        wins[best] = wins.get(best, 0) + 1
    print("fastest: " + ", ".join(f"{name} in {count} of {len(cells)} cells" for name, count in wins.items()))
    slowdowns = [cell.ratios[cell.picked] for cell in cells if cell.picked in cell.seconds]
    if slowdowns:
        print(
            f"time of auto / fastest: {statistics.median(slowdowns):.2f} ({min(slowdowns):.2f} - {max(slowdowns):.2f})"
        )
    if options.json:
        result = {
            "command": "python " + " ".join(sys.argv),
            "device": name,
            "commit": revision,
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
            "cells": [
                dataclasses.asdict(cell) | {"median_seconds": cell.medians, "ratios": cell.ratios, "flops": cell.flops}
                for cell in cells
            ],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
