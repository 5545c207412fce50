"""What of a model stays where and what is read again for each pass, under a budget, and what that will cost.

Bytes of memory while a model with layers on disk runs:

    the process as it is            measured
    outside                         embeddings, head and final norm, as they are stored
    small                           norms and biases of a layer, in what is computed in
    tiles                           rows of a matrix that are turned into fp32 for many tokens
    buffers                         BUFFERS layers as they are stored, where any is read from disk
    kept                            the layers that stay, as they are stored
    cache and activations           by the number of tokens that are asked for

On a GPU the outside, the cache and the activations are there, with two layers on their way and as many as fit; memory
has the buffers for what comes from disk, and keeps layers that do not fit on the GPU.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gptstar.cpu import matvec
from gptstar.cpu.fast_linear import TILE
from gptstar.errors import UserError
from gptstar.model.choices import BLOCKS
from gptstar.model.describe import cache_bytes_per_token
from gptstar.model.meta import on_meta
from gptstar.offload.layers import OnDisk, Piece
from gptstar.offload.matrix import prepare_stored, product
from gptstar.offload.reading import Disk, Extent, new_buffer
from gptstar.offload.stream import READ_AT_ONCE
from gptstar.quantization.int4 import GROUP
from gptstar.sizes import at_least, say_bytes

BUFFERS = 2  # layers on their way from disk
STAGES = 2  # layers on their way to a GPU
SLACK = 192 * 2**20  # bytes for what libraries and threads take beside
GPU_SLACK = 768 * 2**20  # the libraries' own, on a GPU
SAMPLE = 2**29  # bytes that are read to see how fast that is


@dataclass(frozen=True)
class Traffic:
    """What a pass reads from one place. speed: bytes a second."""

    where: str
    n_layer: int
    n_byte: int
    speed: float

    @property
    def seconds(self) -> float:
        """Of a pass, were there nothing else."""
        return self.n_byte / self.speed if self.n_byte else 0.0


@dataclass(frozen=True)
class Plan:
    """What stays where. Bytes.

    budget: of memory, None where only the GPU has one. on_gpu, resident: layers that stay there, and in memory.
    held, gpu_held: what is used at the most. traffic: what a pass reads; the parts run beside each other.
    """

    budget: int | None
    gpu_budget: int | None
    n_layer: int
    on_gpu: tuple[int, ...]
    resident: tuple[int, ...]
    held: int
    gpu_held: int
    traffic: tuple[Traffic, ...]

    @property
    def bottleneck(self) -> Traffic:
        """The slowest part."""
        return max(self.traffic, key=lambda part: part.seconds)

    @property
    def seconds(self) -> float:
        """A pass."""
        return self.bottleneck.seconds

    @property
    def from_disk(self) -> int:
        """Bytes a pass."""
        return sum(part.n_byte for part in self.traffic if part.where == "disk")

    def __str__(self) -> str:
        told = []
        if self.budget is not None:
            told.append(f"memory_budget={say_bytes(self.budget)}: {say_bytes(self.held)} in use")
        if self.gpu_budget is not None:
            told.append(f"gpu_memory_budget={say_bytes(self.gpu_budget)}: {say_bytes(self.gpu_held)} in use")
        kept = f"{len(self.resident)} of {self.n_layer} layers stay in memory"
        kept += f", {len(self.on_gpu)} on the GPU" if self.gpu_budget is not None else ""
        lines = ["; ".join([*told, kept]), f"  {'':10} layers   a pass reads            at        takes"]
        for part in self.traffic:
            speed = f"{say_bytes(part.speed)}/s" if part.n_byte else ""
            numbers = f"{part.n_layer:6} {say_bytes(part.n_byte):>14} {speed:>14} {part.seconds:10.3g} s"
            lines.append(f"  {part.where:10} {numbers}" + ("  <- the slowest" if part is self.bottleneck else ""))
        lines.append(f"  so a token takes about {self.seconds:.2g} s, and many at once little longer each pass")
        return "\n".join(lines)


@dataclass(frozen=True)
class Needs:
    """Bytes of a model's parts. layers: each as it is stored."""

    layers: list[int]
    outside: int
    small: int
    working: int  # cache, activations and tiles
    reading: int  # what the largest table takes besides, while it is read and put together

    @property
    def largest(self) -> int:
        """Layer."""
        return max(self.layers)


@dataclass(frozen=True)
class Room:
    """Tokens that there is to be room for: n_token in caches, of all sequences together, and at_once in a pass, of
    which n_scored have their scores over the vocabulary there. longest: of one sequence; None: there is one.
    other: bytes that will be taken besides.
    """

    n_token: int
    at_once: int = READ_AT_ONCE
    n_scored: int = 32
    longest: int | None = None
    other: int = 0


def needs(found: OnDisk, dtype: torch.dtype, room: Room) -> Needs:
    """dtype: what is computed in."""
    config, size = found.config, dtype.itemsize
    with on_meta():
        homes = prepare_stored(BLOCKS[config.block](config, 0)).state_dict()
    small = sum(tensor.numel() for tensor in homes.values() if isinstance(tensor, Tensor)) * size
    widest = 2 * (config.d_model + config.d_feedforward) + 3 * config.d_attention
    at_once = min(room.at_once, room.n_token)
    working = room.n_token * cache_bytes_per_token(config, size) + at_once * widest * 2 * size
    working += 3 * min(at_once, room.n_scored) * config.vocab_size * 4
    # What each token sees of each other one; ALiBi has a number of its own for every head.
    per_pair = 2 * config.n_head + 1 if "alibi" in config.schemes else 1
    working += per_pair * at_once * (room.longest or room.n_token) * size
    return Needs(
        [Extent(p for piece in layer for p in piece.places).n_byte for layer in found.layers],
        sum(place.n_byte for piece in found.outside for place in piece.places),
        small,
        working + 4 * TILE * 2 + room.other,
        max(len(piece.places) * sum(place.n_byte for place in piece.places) for piece in found.outside),
    )


def make_plan(
    found: OnDisk,
    dtype: torch.dtype,
    budget: int | None,
    room: Room,
    disk: Disk,
    gpu_budget: int | None = None,
    link_speed: Callable[[], float] = lambda: math.inf,
    device: torch.device | str = "cuda",
) -> Plan:
    """dtype: what is computed in. link_speed: measures bytes a second to the GPU, `device`.

    Raises UserError where not one layer fits.
    """
    need, n_token = needs(found, dtype, room), room.n_token
    every = range(len(need.layers))
    on_gpu: tuple[int, ...] = ()
    gpu_held = 0
    if gpu_budget is not None:
        fixed = need.outside + need.small + need.working + GPU_SLACK
        on_gpu, gpu_held = _fit(need, gpu_budget, fixed, STAGES, "gpu_memory_budget", n_token)
        used = memory_in_use() + SLACK + (need.largest if on_gpu else 0)  # which are read into memory first
        in_memory = replace(need, layers=[pinned(n_byte) for n_byte in need.layers])
    else:
        in_memory = need
        used = memory_in_use() + need.outside + need.small + need.working + SLACK
    others = [n for n in every if n not in on_gpu]
    loading = memory_in_use() + SLACK + need.reading + (need.outside if gpu_budget is None else 0)
    if budget is None:
        resident, held = tuple(others), used + sum(in_memory.layers[n] for n in others)
    elif not others:
        resident, held = (), used + need.largest  # while it is read
        if max(held, loading) > budget:
            raise UserError(_too_small("memory_budget", budget, max(held, loading), n_token))
    else:
        n_buffer = BUFFERS if gpu_budget is None else BUFFERS + 1  # one may still be copied from
        resident, held = _fit(in_memory, budget, used, n_buffer, "memory_budget", n_token, others, loading)
    streamed = [n for n in others if n not in resident]
    from_disk = sum(need.layers[n] for n in streamed)
    speed = disk_speed(found.layers[streamed[0]], disk) if streamed else 1.0
    traffic = [Traffic("disk", len(streamed), from_disk, speed)]
    if gpu_budget is None:
        everything = sum(need.layers) + need.outside
        traffic.insert(0, Traffic("products", len(need.layers), everything, product_speed(found)))
    else:
        moved = sum(need.layers[n] for n in others)
        traffic.insert(0, Traffic("memory", len(others), moved, link_speed() if moved else 1.0))
        traffic.insert(0, Traffic("GPU", len(need.layers), sum(need.layers) + need.outside, gpu_speed(device)))
    return Plan(budget, gpu_budget, len(need.layers), on_gpu, resident, held, gpu_held, tuple(traffic))


def pinned(n_byte: int) -> int:
    """What so many bytes take that a GPU is to copy from."""
    return 1 << (n_byte - 1).bit_length()


def least_bytes(found: OnDisk, dtype: torch.dtype, room: Room) -> int:
    """The smallest memory budget with which this process could run it on a CPU."""
    need = needs(found, dtype, room)
    running = need.small + need.working + BUFFERS * need.largest
    return memory_in_use() + SLACK + need.outside + max(running, need.reading)


def _fit(
    need: Needs,
    budget: int,
    fixed: int,
    n_buffer: int,
    name: str,
    n_token: int,
    among: list[int] | None = None,
    loading: int = 0,
) -> tuple[tuple[int, ...], int]:
    """Which layers stay, and what is used then. loading: what that takes."""
    layers = list(range(len(need.layers))) if among is None else among
    everything = fixed + sum(need.layers[n] for n in layers)
    if max(everything, loading) <= budget:
        return tuple(layers), everything
    ring = n_buffer * need.largest
    n_kept = math.floor((budget - fixed - ring) / need.largest)
    if n_kept < 0 or loading > budget:
        raise UserError(_too_small(name, budget, max(fixed + ring, loading), n_token))
    chosen = tuple(layers[n] for n in spread(n_kept, len(layers)))
    return chosen, fixed + ring + sum(need.layers[n] for n in chosen)


def _too_small(name: str, budget: int, least: int, n_token: int) -> str:
    return (
        f"{name}={say_bytes(budget)} is too small for a layer at a time: {at_least(least)} is the least for {n_token} "
        "tokens; raise it, or ask for fewer (max_new_tokens, or batch_tokens and max_length)"
    )


def spread(n: int, total: int) -> tuple[int, ...]:
    """n of `total` numbers as evenly as can be, so that between two reads there is always some work."""
    return tuple(sorted({(2 * i + 1) * total // (2 * n) for i in range(n)})) if n else ()


def disk_speed(layer: list[Piece], disk: Disk) -> float:
    """Bytes a second, of some of a layer's own; a first small read, which is slower, does not count."""
    places, total = [], 0
    for piece in sorted(layer, key=lambda piece: -max(place.n_byte for place in piece.places)):
        for place in piece.places:
            if total < SAMPLE:
                places.append(place)
                total += place.n_byte
    disk.read(first := Extent(places[:1]), new_buffer(first.n_byte))
    extent = Extent(places)
    buffer = new_buffer(extent.n_byte)
    buffer[::4096] = 0  # the system hands memory out now, not while it is timed
    start = time.perf_counter()
    disk.read(extent, buffer)
    return extent.n_byte / (time.perf_counter() - start)


def product_speed(found: OnDisk) -> float:
    """Stored bytes a second that are multiplied with one token on this CPU."""
    n, k = 1 << 13, 1 << 12
    x = torch.zeros(1, k)
    pairs = [place for piece in found.layers[0] for place in piece.places if place.dtype == torch.uint8]
    codes = [place for piece in found.layers[0] for place in piece.places if place.dtype == torch.int8]
    if pairs and matvec.available():
        matrix, some = torch.zeros(n, k // 2, dtype=torch.uint8), torch.zeros(n, k // GROUP, 2, dtype=torch.bfloat16)
        return _best(lambda: torch.ops.gptstar.matvec_int4(x, matrix, some), matrix.nbytes + some.nbytes)
    if codes and matvec.available():
        matrix, scale = torch.zeros(n, k, dtype=torch.int8), torch.zeros(n)
        return _best(lambda: torch.ops.gptstar.matvec_int8(x, matrix, scale), matrix.nbytes)
    dtype = found.dtype if found.dtype.is_floating_point else torch.float32
    largest = max(found.layers[0], key=lambda piece: sum(place.n_byte for place in piece.places))
    with on_meta():
        made = next(iter(largest.merge([torch.empty(place.shape) for place in largest.places])))
    turned = made.stride(0) == 1 and made.stride(1) > 1  # GPT-2's lie that way
    matrix = torch.zeros(k, n, dtype=dtype).t() if turned else torch.zeros(n, k, dtype=dtype)
    return _best(lambda: product(x, [matrix], False), matrix.nbytes)


def gpu_speed(device: torch.device | str) -> float:
    """Bytes a second that a GPU reads of its own memory."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)

    def read() -> None:
        source.view(torch.float32).sum()
        torch.cuda.synchronize(device)

    return _best(read, source.nbytes)


def _best(work: Callable[[], object], n_byte: int) -> float:
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return n_byte / best


def memory_in_use() -> int:
    """Bytes this process holds just now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def whole_bytes(found: OnDisk, dtype: torch.dtype, room: Room) -> int:
    """What a process takes that loads all of it, in what is computed in."""
    parts = (found.outside, *found.layers)
    numbers = [sum(math.prod(place.shape) for piece in part for place in piece.places) for part in parts]
    working = needs(found, dtype, room).working
    places = [place for part in parts for piece in part for place in piece.places]
    largest = max(place.n_byte for place in places)
    if any(place.file.suffix == ".bin" for place in places):  # they stay mapped while they are read
        largest += sum({place.file: place.file.stat().st_size for place in places}.values())
    elif any(len(piece.places) > 1 for part in parts for piece in part):  # a layer's halves, and what they make
        largest += max(sum(place.n_byte for piece in part for place in piece.places) for part in parts)
    return memory_in_use() + sum(numbers) * dtype.itemsize + largest + working + SLACK
