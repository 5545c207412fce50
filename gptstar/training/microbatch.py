"""trainer.microbatch=auto: how many sequences to take through the model at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from gptstar.device import free_memory
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.training.throughput import peak_gib

SHARE = 0.8  # of the free memory that a microbatch may need
FASTER = 0.97  # a larger one on a CPU has to need less time a sequence than this share of a smaller one's


def find_microbatch(
    loss: Callable[[Tensor, Tensor], Tensor], model: GPT, length: int, batch_size: int, device: torch.device
) -> int:
    """What suits the device, for sequences of `length` tokens and `loss(inputs, targets)` of `model`.

    Raises UserError where not even one sequence fits. The model's gradients are None afterwards.
    """

    def work(size: int) -> None:
        tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
        # A step has moments, about twice the weights, and with several microbatches the gradients of the first.
        held = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        try:
            for _ in range(2 if device.type == "cuda" else 1):
                loss(tokens, tokens).backward()
        finally:
            model.zero_grad(set_to_none=True)
            held.clear()

    try:
        return largest_useful(work, batch_size, device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"trainer.microbatch=auto: not even one sequence of {length} tokens fits {device}: "
            "raise trainer.recompute, or shorten trainer.sequence_length"
        ) from error


def largest_useful(work: Callable[[int], None], batch_size: int, device: torch.device) -> int:
    """The divisor of batch_size that suits the device: the largest that fits a GPU; on a CPU the smallest beyond which
    a sequence takes no less time.

    work: runs forward and backward over so many sequences. Raises torch.OutOfMemoryError where not even one fits.
    """
    sizes = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    found, best = sizes[0], float("inf")
    before, free = peak_gib(device), free_memory(device)
    for size, larger in zip(sizes, [*sizes[1:], None], strict=True):
        try:
            work(size)  # allocates, and warms up
            start = time.perf_counter()
            if device.type == "cpu":
                work(size)
            seconds = (time.perf_counter() - start) / size
        except torch.OutOfMemoryError:
            if size == sizes[0]:
                raise
            break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if device.type != "cpu" or seconds < FASTER * best:
            found = size
        elif size >= 4 * found:
            break
        best = min(best, seconds)
        grown = (peak_gib(device) - before) * 2**30
        if larger is not None and device.type == "cpu" and grown * larger / size > SHARE * free:
            break
    return found
