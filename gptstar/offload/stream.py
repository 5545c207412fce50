"""Layers of a model that come from disk while it runs.

A pass needs the layers in order, and the next pass the same again. So one thread goes round and round: it has the next
layers' bytes read ahead into a ring of buffers, and turns each layer's bytes into the weights of a block that waits to
be used. Reading never stops between passes: after the last layer comes the first. Some layers' bytes stay in memory,
always the same ones: in a cyclic order, whatever drops what was used longest ago drops what is needed next.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gptstar.model.attention import Sight
from gptstar.model.cache import KeyValueCache
from gptstar.offload.layers import Piece
from gptstar.offload.reading import Disk, Extent, finish, new_buffer

SLOTS = 2  # blocks: one is used while the other is filled


class Layers:
    """All layers of a model, one after another, round and round.

    blocks: SLOTS of them, in which each layer appears in turn. resident: layers whose bytes stay in memory.
    buffers: layers that are read ahead.
    """

    def __init__(
        self, layers: list[list[Piece]], blocks: list[nn.Module], resident: set[int], disk: Disk, buffers: int
    ) -> None:
        self.layers, self.disk = layers, disk
        self.extents = [Extent(place for piece in layer for place in piece.places) for layer in layers]
        self.kept: dict[int, Tensor] = {}
        self.resident, self.streamed = resident, [n for n in range(len(layers)) if n not in resident]
        largest = max((self.extents[n].n_byte for n in self.streamed), default=0)
        self._buffers = deque(new_buffer(largest) for _ in range(min(buffers, len(self.streamed))))
        self._seen: set[int] = set()
        self._free: queue.Queue[nn.Module | None] = queue.Queue()
        self._ready: queue.Queue[tuple[int, nn.Module] | BaseException] = queue.Queue()
        self._targets = {id(block): block.state_dict() for block in blocks}
        for block in blocks:
            self._free.put(block)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layers", daemon=True)
        self._thread.start()

    @contextmanager
    def use(self, layer: int) -> Iterator[nn.Module]:
        """The block with a layer's weights. Raises UserError where it could not be read."""
        while True:
            if self._failed is not None:
                raise self._failed
            got = self._ready.get()
            if isinstance(got, BaseException):
                self._failed = got
                continue
            number, block = got
            if number == layer:
                break
            self._free.put(block)  # a pass that was broken off: the others go by
        try:
            yield block
        finally:
            self._free.put(block)

    def close(self) -> None:
        """Ends the thread."""
        self._free.put(None)
        self._thread.join()

    # What follows runs in the thread.

    def _run(self) -> None:
        ahead: deque[tuple[int, Tensor, list[Future[None]]]] = deque()
        next_up = 0  # among self.streamed
        try:
            while True:
                for layer in range(len(self.layers)):
                    while self._buffers and self.streamed:
                        number = self.streamed[next_up]
                        buffer = self._buffers.popleft()
                        ahead.append((number, buffer, self.disk.start(self.extents[number], buffer)))
                        next_up = (next_up + 1) % len(self.streamed)
                    block = self._free.get()
                    if block is None:
                        return
                    if layer in self.resident:
                        self._fill(layer, self._resident(layer), block)
                    else:
                        number, buffer, futures = ahead.popleft()
                        assert number == layer
                        finish(futures)
                        self._fill(layer, buffer, block)
                        self._buffers.append(buffer)
                    self._ready.put((layer, block))
        except BaseException as error:
            self._ready.put(error)
        finally:
            for _, _, futures in ahead:
                for future in futures:
                    future.cancel()

    def _resident(self, layer: int) -> Tensor:
        if layer not in self.kept:
            self.kept[layer] = new_buffer(self.extents[layer].n_byte)
            self.disk.read(self.extents[layer], self.kept[layer])
        return self.kept[layer]

    @torch.no_grad()
    def _fill(self, layer: int, buffer: Tensor, block: nn.Module) -> None:
        targets, extent = self._targets[id(block)], self.extents[layer]
        for piece in self.layers[layer]:
            tensors = [extent.tensor(place, buffer) for place in piece.places]
            piece.fill(tensors, targets, check=layer not in self._seen)
        self._seen.add(layer)
        for module in block.modules():
            if hasattr(module, "layer"):
                module.layer = layer  # type: ignore[assignment]  # where its keys and values go in a cache


class StreamedBlock(nn.Module):
    """One layer of a model: whichever block has its weights just then."""

    def __init__(self, layer: int, layers: Layers) -> None:
        super().__init__()
        self.layer, self.layers = layer, layers

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        with self.layers.use(self.layer) as block:
            return block(x_BTC, sight, cache)
