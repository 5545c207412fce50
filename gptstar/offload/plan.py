"""What of a model stays in memory and what is read again for each pass, under a budget, and what that will cost.

Bytes of memory while a model with layers on disk runs:

    the process as it is            measured
    outside                         embeddings, head and final norm, as they are stored; norms in what is computed in
    blocks                          SLOTS layers in what is computed in
    merging                         the largest tensor of a layer as it is stored: halves that are put together
    buffers                         BUFFERS layers as they are stored, where any is read from disk
    kept                            the layers that stay, as they are stored
    cache and activations           by the number of tokens that are asked for
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gptstar.errors import UserError
from gptstar.model.describe import cache_bytes_per_token
from gptstar.offload.layers import OnDisk, Piece
from gptstar.offload.reading import Disk, Extent, new_buffer
from gptstar.offload.stream import SLOTS
from gptstar.sizes import say_bytes

BUFFERS = 2
SLACK = 192 * 2**20  # bytes for what libraries and threads take beside
SAMPLE = 256 * 2**20  # bytes that are read to see how fast that is


@dataclass(frozen=True)
class Plan:
    """What stays where. Bytes, and seconds a pass by what could be the bottleneck.

    resident: layers whose bytes stay in memory. from_disk, from_memory: bytes that a pass reads.
    disk_speed, memory_speed: bytes a second, of direct reads and of turning stored numbers into computed ones.
    """

    budget: int
    n_layer: int
    resident: tuple[int, ...]
    held: int
    from_disk: int
    from_memory: int
    disk_speed: float
    memory_speed: float

    @property
    def disk_seconds(self) -> float:
        """Of a pass, were there nothing but the disk."""
        return self.from_disk / self.disk_speed if self.from_disk else 0.0

    @property
    def memory_seconds(self) -> float:
        """Of a pass, were there nothing but the processor and its memory."""
        return self.from_memory / self.memory_speed

    @property
    def seconds(self) -> float:
        """A pass: the slower of both, for they run beside each other."""
        return max(self.disk_seconds, self.memory_seconds)

    def __str__(self) -> str:
        on_disk = self.n_layer - len(self.resident)
        slower = "the disk" if self.disk_seconds > self.memory_seconds else "processor and memory"
        disk = f", {say_bytes(self.from_disk)} of it from disk at {say_bytes(self.disk_speed)}/s" if on_disk else ""
        return (
            f"memory_budget={say_bytes(self.budget)}: {say_bytes(self.held)} in use; of {self.n_layer} layers "
            f"{len(self.resident)} stay in memory and {on_disk} on disk\n"
            f"a pass reads {say_bytes(self.from_memory)}{disk}: about {self.seconds:.2g} s, limited by {slower}"
        )


def whole_bytes(found: OnDisk, dtype: torch.dtype, n_token: int) -> int:
    """What a process takes that loads all of it, in what is computed in."""
    numbers = [sum(map(_numbers, pieces)) for pieces in (found.outside, *found.layers)]
    tokens = n_token * cache_bytes_per_token(found.config, dtype.itemsize)
    largest = max(place.n_byte for pieces in (found.outside, *found.layers) for p in pieces for place in p.places)
    return memory_in_use() + sum(numbers) * dtype.itemsize + largest + tokens + SLACK


def make_plan(found: OnDisk, dtype: torch.dtype, budget: int, n_token: int, disk: Disk) -> Plan:
    """dtype: what is computed in. n_token: of all sequences together. Raises UserError where not one layer fits."""
    stored = [Extent(p for piece in layer for p in piece.places).n_byte for layer in found.layers]
    computed = max(sum(map(_numbers, layer)) for layer in found.layers) * dtype.itemsize
    outside = sum(place.n_byte for piece in found.outside for place in piece.places)
    tokens = n_token * cache_bytes_per_token(found.config, dtype.itemsize)
    logits = 4 * found.config.vocab_size * dtype.itemsize
    merged = max(sum(place.n_byte for place in piece.places) for layer in found.layers for piece in layer)
    fixed = memory_in_use() + outside + SLOTS * computed + merged + tokens + logits + SLACK
    ring = BUFFERS * max(stored)
    if fixed + sum(stored) <= budget:
        resident = tuple(range(len(stored)))
        ring = 0
    else:
        n_kept = math.floor((budget - fixed - ring) / max(stored))
        if n_kept < 0:
            least = f"{say_bytes(fixed + ring)} is the least for {n_token} tokens"
            raise UserError(
                f"memory_budget={say_bytes(budget)} is too small for a layer at a time: {least}; "
                "raise it, or ask for fewer tokens"
            )
        resident = spread(n_kept, len(stored))
    streamed = [n for n in range(len(stored)) if n not in resident]
    return Plan(
        budget=budget,
        n_layer=len(stored),
        resident=resident,
        held=fixed + ring + sum(stored[n] for n in resident),
        from_disk=sum(stored[n] for n in streamed),
        from_memory=sum(stored) + outside,
        disk_speed=disk_speed(found.layers[streamed[0]], disk) if streamed else math.inf,
        memory_speed=conversion_speed(found.dtype, dtype),
    )


def spread(n: int, total: int) -> tuple[int, ...]:
    """n of `total` numbers as evenly as can be, so that between two reads there is always some work."""
    return tuple(sorted({(2 * i + 1) * total // (2 * n) for i in range(n)})) if n else ()


def disk_speed(layer: list[Piece], disk: Disk) -> float:
    """Bytes a second, of some of a layer's own."""
    places, total = [], 0
    for piece in layer:
        for place in piece.places:
            if total < SAMPLE:
                places.append(place)
                total += place.n_byte
    extent = Extent(places)
    buffer = new_buffer(extent.n_byte)
    start = time.perf_counter()
    disk.read(extent, buffer)
    return extent.n_byte / (time.perf_counter() - start)


def conversion_speed(stored: torch.dtype, computed: torch.dtype) -> float:
    """Stored bytes a second that become computed numbers, and are then multiplied with once."""
    source = torch.zeros(1 << 11, 1 << 11, dtype=stored)
    target, x = torch.empty_like(source, dtype=computed), torch.zeros(1 << 11, dtype=computed)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        target.copy_(source)
        target @ x
        best = min(best, time.perf_counter() - start)
    return source.numel() * source.element_size() / best


def memory_in_use() -> int:
    """Bytes this process holds just now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _numbers(piece: Piece) -> int:
    return sum(math.prod(place.shape) for place in piece.places)
