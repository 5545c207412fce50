"""trainer.profile=true: where a step's time goes, and how far each part is from what the hardware allows.

One microbatch is taken through the model function by function, each waited for, with the bytes that a function's
tensors hold and the FLOPs it needs. Its roofline (Williams et al., 2009) is whichever takes longer: the FLOPs at the
matmul peak, or the bytes at the speed of memory, both measured here. The model runs eagerly for this; compiled code
fuses functions, so its parts cannot be told apart. The trace beside the table is of an ordinary step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptstar.model.matmul import linear
from gptstar.model.transformer import GPT
from gptstar.training.tensor_parallel import summed

KINDS: dict[Any, str] = {
    F.embedding: "forward: embedding",
    F.linear: "forward: matrix products",
    linear: "forward: matrix products",
    F.scaled_dot_product_attention: "forward: attention",
    F.layer_norm: "forward: norms",
    F.rms_norm: "forward: norms",
    F.gelu: "forward: activation",
    F.silu: "forward: activation",
    F.relu: "forward: activation",
    summed: "forward: sums over ranks",
}
REST = "forward: everything else"


@dataclass
class Part:
    """Seconds, FLOPs and bytes of one part of a step."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def roofline(self, peak: float, bandwidth: float) -> float:
        """The seconds it cannot be faster than."""
        return max(self.flops / peak, self.bytes / bandwidth)


class _Functions(TorchFunctionMode):
    """Times every function, the outermost ones."""

    def __init__(self, parts: dict[str, Part], wait: Callable[[], None]) -> None:
        super().__init__()
        self.parts, self.wait = parts, wait

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.wait()
        start = time.perf_counter()
        out = func(*args, **kwargs)
        self.wait()
        part = self.parts[KINDS.get(func, REST)]
        part.seconds += time.perf_counter() - start
        part.flops += _flops(func, args)
        if func in KINDS or not _is_view(args, out):
            part.bytes += sum(t.nbytes for t in (*args, *kwargs.values(), out) if isinstance(t, Tensor))
        return out


def _flops(func: Any, args: tuple) -> float:
    if func in (F.linear, linear):
        return 2.0 * args[0].numel() * args[1].shape[0]
    if func is F.scaled_dot_product_attention:
        return 4.0 * args[0].numel() * args[1].shape[2]
    return 0.0


def _is_view(args: tuple, out: Any) -> bool:
    """Whether nothing was computed: no result, or one that lies in an argument's memory."""
    if not isinstance(out, Tensor):
        return True
    held = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
    return out.untyped_storage().data_ptr() in held


def profile_model(
    model: GPT, loss: Callable[[Tensor, Tensor], Tensor], inputs_BT: Tensor, targets_BT: Tensor
) -> dict[str, Part]:
    """The parts of forward and backward over one microbatch, and "head and loss", which are most of a small model.

    loss: of inputs and targets, under the run's precision. Gradients are left as they were: None.
    """
    parts: dict[str, Part] = defaultdict(Part)
    wait = torch.cuda.synchronize if inputs_BT.is_cuda else _nothing
    n_token, config = inputs_BT.numel(), model.config
    for _ in range(2):  # the first warms up
        parts.clear()
        wait()
        start = time.perf_counter()
        with _within_hidden(model, parts, wait):
            value = loss(inputs_BT, targets_BT)
        wait()
        forward = time.perf_counter()
        value.backward()
        wait()
        end = time.perf_counter()
        model.zero_grad(set_to_none=True)
    del value
    inside = sum(part.seconds for part in parts.values())
    hidden = parts.pop("hidden").seconds
    inside -= hidden
    parts[REST].seconds += max(0.0, hidden - inside)  # Python between the functions
    head = 2.0 * config.padded_vocab_size * config.d_model * n_token
    table = 4.0 * config.padded_vocab_size * config.d_model
    # The loss computes its gradients together with the logits (model/loss.py): three matrix products.
    parts["head and loss"] = Part(forward - start - hidden, 3 * head, 3 * table)
    ahead = [part for name, part in parts.items() if name.startswith("forward")]
    twice = 2 * sum(p.flops for p in ahead), 2 * sum(p.bytes for p in ahead)
    parts["backward"] = Part(end - forward, *twice)
    return dict(parts)


@contextmanager
def _within_hidden(model: GPT, parts: dict[str, Part], wait: Callable[[], None]) -> Iterator[None]:
    plain = model.hidden

    def hidden(*args: Any, **kwargs: Any) -> Tensor:
        start = time.perf_counter()
        with _Functions(parts, wait):
            out = plain(*args, **kwargs)
        parts["hidden"].seconds += time.perf_counter() - start
        return out

    model.hidden = hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.hidden


def trace_step(step: Callable[[], None], device: torch.device, folder: Path | None) -> tuple[float, float]:
    """Runs an ordinary step under torch's profiler and writes its trace, for ui.perfetto.dev, into `folder`.

    Seconds of the step, and those of the optimizer in it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as trace:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    if folder is not None:
        folder.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(folder / "trace.json"))
    inside = [e for e in trace.key_averages() if e.key.startswith("Optimizer.step#")]
    optimizer = max((max(e.cpu_time_total, e.device_time_total) / 1e6 for e in inside), default=0.0)
    return seconds, optimizer


def scaled(parts: dict[str, Part], times: int) -> dict[str, Part]:
    """Parts of so many microbatches."""
    return {name: Part(p.seconds * times, p.flops * times, p.bytes * times) for name, p in parts.items()}


def write_table(
    parts: dict[str, Part], ordinary: float, peak: float, bandwidth: float, title: str, folder: Path | None
) -> str:
    """A page of Markdown, profile.md; also returned. ordinary: seconds of a whole step, not taken apart."""
    total = sum(part.seconds for part in parts.values())
    lines = [
        f"# {title}",
        "",
        f"Matmul peak {peak / 1e9:,.0f} GFLOP/s, memory {bandwidth / 1e9:,.1f} GB/s. The parts take "
        f"{total * 1e3:,.1f} ms together, an ordinary step while it is traced {ordinary * 1e3:,.1f} ms (trace.json).",
        "",
        "| part | ms | share | GFLOP | MB | roofline, ms | times it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in parts.items():
        roof = part.roofline(peak, bandwidth)
        times = f"{part.seconds / roof:.1f}" if roof else ""
        numbers = f"{part.flops / 1e9:,.1f} | {part.bytes / 1e6:,.1f} | {roof * 1e3:,.2f}"
        lines.append(f"| {name} | {part.seconds * 1e3:,.2f} | {part.seconds / total:.1%} | {numbers} | {times} |")
    text = "\n".join(lines) + "\n"
    if folder is not None:
        (folder / "profile.md").write_text(text)
    return text


def _nothing() -> None:
    """A CPU has always finished."""
