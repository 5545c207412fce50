"""Layers of a model that come from disk while it runs.

A pass needs the layers in order, and the next pass the same again. So the next layers' bytes are always being read
ahead, into a ring of buffers, and after the last layer comes the first: reading never stops between passes. The bytes
of some layers stay in memory, always of the same ones: in a cyclic order, whatever drops what was used longest ago
drops what is needed next. One block computes all layers: it is bound to a layer's bytes where they lie.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from torch import Tensor, nn

from gptstar.model.attention import Sight
from gptstar.model.cache import KeyValueCache
from gptstar.model.transformer import GPT
from gptstar.offload.layers import Piece, state_of_files
from gptstar.offload.reading import Disk, Extent, finish, new_buffer

READ_AT_ONCE = 512  # tokens that go through the layers together, at most: what is made of them takes memory

# Makes a layer's tensors a block's weights (`binding.py`, `quantized.py`): its number, its pieces, the tensors of each,
# and whether they are seen for the first time.
Bind = Callable[[int, list[Piece], list[list[Tensor]], bool], None]


class Layers:
    """All layers of a model, one after another, round and round, as weights of one block.

    resident: layers whose bytes stay in memory. buffers: how many others are there at a time, in use or on their way.
    """

    def __init__(
        self,
        layers: list[list[Piece]],
        block: nn.Module,
        bind: Bind,
        resident: set[int],
        disk: Disk,
        buffers: int,
    ) -> None:
        self.layers, self.block, self.disk, self._bind = layers, block, disk, bind
        self.extents = [Extent(place for piece in layer for place in piece.places) for layer in layers]
        self.resident = resident
        self.streamed = [n for n in range(len(layers)) if self._is_streamed(n)]
        self.kept: dict[int, Tensor] = {}
        largest = max((self.extents[n].n_byte for n in self.streamed), default=0)
        self._ring = [self.new_buffer(largest) for _ in range(min(buffers, len(self.streamed)))]
        self._free = deque(self._ring)
        self._ahead: deque[tuple[int, Tensor, list[Future[None]]]] = deque()
        self._next = 0  # of self.streamed, the one that is to be read next
        self._bound: int | None = None
        self._lent: Tensor | None = None  # the buffer that the bound layer is in
        self._seen: set[int] = set()
        self._modules = [module for module in block.modules() if hasattr(module, "layer")]
        # How many passes have ended, when the last one did, and bytes that were read from disk by then.
        self.n_pass, self.ended, self.n_byte = 0, time.perf_counter(), 0
        self._counted = False  # whether the bound layer, the last one, has been counted
        self.limit = 0.0  # seconds that a pass takes by what is slowest alone, as was planned
        self.room: Any = None  # the plan's

    @property
    def identity(self) -> str:
        """Which files these weights are in, and as of when."""
        return repr(state_of_files(piece for layer in self.layers for piece in layer))

    @property
    def held(self) -> int:
        """Bytes of the layers that are in memory, and of the buffers for others."""
        return sum(map(len, (*self.kept.copy().values(), *self._ring)))

    def fill(self, advance: Callable[[int], object] = lambda n_byte: None) -> None:
        """Reads what stays, and begins to read the first of what does not. advance: is told bytes."""
        for layer, extent in enumerate(self.extents):
            if not self._is_streamed(layer):
                self._fill_one(layer)
                advance(extent.n_byte)
        self._read_ahead()
        self.ended, self.n_byte = time.perf_counter(), self.disk.n_byte

    def use(self, layer: int) -> nn.Module:
        """The block with a layer's weights, until another is asked for. Raises UserError where it cannot be read."""
        if layer != self._bound:
            self._bound = None
            self._give_back()
            buffer = self._find(layer)
            tensors = [[self.extents[layer].tensor(p, buffer) for p in piece.places] for piece in self.layers[layer]]
            self._bind(layer, self.layers[layer], tensors, layer not in self._seen)
            self._seen.add(layer)
            for module in self._modules:
                module.layer = layer  # type: ignore[assignment]  # where its keys and values go in a cache
            self._bound, self._counted = layer, False
        return self.block

    def done(self, layer: int) -> None:
        """Says that a sequence has gone through a layer, for `n_pass`; several may go through one together."""
        if layer == len(self.layers) - 1:
            self.n_pass += not self._counted
            self.ended, self.n_byte, self._counted = time.perf_counter(), self.disk.n_byte, True

    def new_buffer(self, n_byte: int) -> Tensor:
        """Memory that is read into."""
        return new_buffer(n_byte)

    def _is_streamed(self, layer: int) -> bool:
        return layer not in self.resident

    def _fill_one(self, layer: int) -> None:
        buffer = self.new_buffer(self.extents[layer].n_byte)
        self.disk.read(self.extents[layer], buffer)
        self.kept[layer] = buffer

    def _find(self, layer: int) -> Tensor:
        """The bytes of a layer."""
        if layer not in self.resident:
            return self._take(layer)
        if layer not in self.kept:
            self._fill_one(layer)
        return self.kept[layer]

    def _take(self, layer: int) -> Tensor:
        """The buffer with a layer that is read ahead. Others before it go by: a pass was broken off."""
        while True:
            self._read_ahead()
            number, buffer, futures = self._ahead.popleft()
            try:
                finish(futures)
            except BaseException:
                self._free.append(buffer)
                self._restart(number)
                raise
            if number == layer:
                self._lent = buffer
                return buffer
            self._free.append(buffer)

    def _restart(self, number: int) -> None:
        """What is on its way is forgotten: reading begins again with a layer."""
        for _, buffer, futures in self._ahead:
            for future in futures:
                future.exception()
            self._free.append(buffer)
        self._ahead.clear()
        self._next = self.streamed.index(number)

    def _give_back(self) -> None:
        if self._lent is not None:
            self._free.append(self._lent)
            self._lent = None
            self._read_ahead()

    def _read_ahead(self) -> None:
        while self._free:
            number, buffer = self.streamed[self._next], self._free.popleft()
            self._ahead.append((number, buffer, self.disk.start(self.extents[number], buffer)))
            self._next = (self._next + 1) % len(self.streamed)


class StreamedBlock(nn.Module):
    """One layer of a model: the block that all of them share, with its weights."""

    def __init__(self, layer: int, layers: Layers) -> None:
        super().__init__()
        self.layer, self.layers = layer, layers

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        y_BTC = self.layers.use(self.layer)(x_BTC, sight, cache)
        self.layers.done(self.layer)
        return y_BTC


def layers_of(model: GPT) -> Layers | None:
    """Those of a model that was loaded under a budget; None where all of it was loaded as usual."""
    block = model.blocks[0] if len(model.blocks) else None
    return block.layers if isinstance(block, StreamedBlock) else None
