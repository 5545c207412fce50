"""Batches on their way to the device: the next one is read while the model works on this one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gptstar.data.batches import BatchOrder, read_windows
from gptstar.data.shards import TokenStream


class Feed:
    """The batches of `order`, by step: read ahead by a thread, and for a GPU into memory it can fetch from itself."""

    def __init__(self, stream: TokenStream, order: BatchOrder, length: int, device: torch.device) -> None:
        self.stream, self.order, self.length, self.device = stream, order, length, device
        self._thread = ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, two int64 tensors (batch_size, length) on the device."""
        if self._ahead is not None and self._ahead[0] == step:
            inputs, targets = self._ahead[1].result()
        else:
            inputs, targets = self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        pinned = self.device.type == "cuda"
        return inputs.to(self.device, non_blocking=pinned), targets.to(self.device, non_blocking=pinned)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = read_windows(self.stream, self.order.windows(step), self.length)
        if self.device.type == "cuda":
            return inputs.pin_memory(), targets.pin_memory()
        return inputs, targets
