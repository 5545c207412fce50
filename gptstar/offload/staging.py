"""Layers on their way to a GPU.

Some layers stay on the GPU. The others are copied there for each pass, from pinned memory and on a stream of their own:
while the GPU computes one layer, the next one is on its way into the other of two places. What neither the GPU nor the
memory keeps comes from disk into pinned buffers first.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptstar.offload.layers import Piece
from gptstar.offload.plan import STAGES
from gptstar.offload.reading import Disk, new_buffer
from gptstar.offload.stream import Bind, Layers


class Copier:
    """What is particular to CUDA: pinned memory, a stream for copies, and events."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._stream = device, torch.cuda.Stream(device)

    def host_buffer(self, n_byte: int) -> Tensor:
        """uint8 memory from which copies need not be waited for; torch makes it a power of two (`plan.pinned`)."""
        try:
            return torch.empty(n_byte, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system lets this process pin no more: copies are slower then
            return new_buffer(n_byte)

    def device_buffer(self, n_byte: int) -> Tensor:
        """uint8, on the GPU."""
        return torch.empty(n_byte, dtype=torch.uint8, device=self.device)

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Begins to copy once `after` has happened; what happens when it is there."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            target.record_stream(self._stream)  # its memory is not given to others meanwhile
            return self._stream.record_event()

    def speed(self) -> float:
        """Bytes a second that can be copied there."""
        source, target = self.host_buffer(2**26), self.device_buffer(2**26)
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            self.finish(self.copy(target, source, self.used()))
            best = min(best, time.perf_counter() - start)
        return len(source) / best

    def used(self) -> Any:
        """What happens when all that has been asked of the GPU so far is done."""
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, ready: Any) -> None:
        """The GPU computes nothing more before that has happened."""
        torch.cuda.current_stream(self.device).wait_event(ready)

    def finish(self, ready: Any) -> None:
        """Returns when it has happened."""
        ready.synchronize()


@dataclass
class _Stage:
    """A place on the GPU for a layer. free: what happens when it is not needed any more."""

    buffer: Tensor
    free: Any


class StagedLayers(Layers):
    """`Layers` whose block is on a GPU. on_gpu: layers that stay there."""

    def __init__(
        self,
        layers: list[list[Piece]],
        block: nn.Module,
        bind: Bind,
        resident: set[int],
        disk: Disk,
        buffers: int,
        on_gpu: set[int],
        copier: Copier,
    ) -> None:
        self.copier, self.on_gpu = copier, on_gpu
        self._kept_there: dict[int, Tensor] = {}
        super().__init__(layers, block, bind, resident, disk, buffers)
        self._moved = [n for n in range(len(layers)) if n not in on_gpu]
        largest = max((self.extents[n].n_byte for n in self._moved), default=0)
        n_stage = min(STAGES, len(self._moved))
        self._stages = deque(_Stage(copier.device_buffer(largest), copier.used()) for _ in range(n_stage))
        self._places = [stage.buffer for stage in self._stages]
        self._on_the_way: deque[tuple[int, _Stage, Any]] = deque()
        self._leaving: deque[tuple[Any, Tensor]] = deque()  # buffers that a copy still reads
        self._stage: _Stage | None = None

    def new_buffer(self, n_byte: int) -> Tensor:
        return self.copier.host_buffer(n_byte)

    @property
    def held(self) -> int:
        """Bytes on the GPU."""
        return sum(map(len, (*self._kept_there.values(), *self._places)))

    def _is_streamed(self, layer: int) -> bool:
        return layer not in self.resident and layer not in self.on_gpu

    def _fill_one(self, layer: int) -> None:
        if layer not in self.on_gpu:
            super()._fill_one(layer)
            return
        buffer = new_buffer(self.extents[layer].n_byte)
        self.disk.read(self.extents[layer], buffer)
        self._kept_there[layer] = self.copier.device_buffer(len(buffer)).copy_(buffer)

    def _find(self, layer: int) -> Tensor:
        if layer in self.on_gpu:
            if layer not in self._kept_there:
                self._fill_one(layer)
            return self._kept_there[layer]
        while self._on_the_way and self._on_the_way[0][0] != layer:  # a pass was broken off
            _, stage, ready = self._on_the_way.popleft()
            self.copier.finish(ready)
            self._stages.append(stage)
        if not self._on_the_way:
            self._send(layer)
        _, self._stage, ready = self._on_the_way.popleft()
        self.copier.wait(ready)
        return self._stage.buffer

    def _send(self, layer: int) -> None:
        """Begins to copy a layer to the GPU, as soon as its bytes are in memory."""
        while self._leaving:
            ready, buffer = self._leaving.popleft()
            self.copier.finish(ready)
            self._free.append(buffer)
        host = super()._find(layer)
        stage = self._stages.popleft()
        n_byte = self.extents[layer].n_byte
        ready = self.copier.copy(stage.buffer[:n_byte], host[:n_byte], stage.free)
        self._on_the_way.append((layer, stage, ready))
        if self._lent is not None:
            self._leaving.append((ready, self._lent))
            self._lent = None

    def _give_back(self) -> None:
        if self._stage is not None:
            self._stage.free = self.copier.used()
            self._stages.append(self._stage)
            self._stage = None

    def done(self, layer: int) -> None:
        super().done(layer)
        if self._stages and self._moved:  # what was just asked of the GPU takes a while
            after = self._on_the_way[-1][0] if self._on_the_way else layer
            self._send(next((n for n in self._moved if n > after), self._moved[0]))
