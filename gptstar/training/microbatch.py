"""trainer.microbatch=auto: how many sequences to take through the model at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from gptstar.device import free_memory
from gptstar.training.throughput import memory_in_use

SHARE = 0.8  # of the free memory that a microbatch may need
FASTER = 0.97  # a larger one on a CPU has to need less time a sequence than this share of a smaller one's


def find_microbatch(work: Callable[[int], None], batch_size: int, device: torch.device) -> int:
    """The divisor of batch_size that suits the device: the largest that fits a GPU; on a CPU the smallest beyond which
    a sequence takes no less time.

    work: runs forward and backward over so many sequences. Raises torch.OutOfMemoryError where not even one fits.
    """
    sizes = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    found, best = sizes[0], float("inf")
    before, free = memory_in_use(device), free_memory(device)
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
        grown = (memory_in_use(device) - before) * 2**30
        if larger is not None and device.type == "cpu" and grown * larger / size > SHARE * free:
            break
    return found
