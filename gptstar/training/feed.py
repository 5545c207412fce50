"""Batches on their way to the device: the next one is read while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gptstar.data.packing import Batch


class Feed:
    """Batches by step, as `read` gives them: read ahead by a thread, for a GPU into memory it can fetch from itself."""

    def __init__(self, read: Callable[[int], Batch], device: torch.device) -> None:
        self.read, self.device = read, device
        self._thread = ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, Future[tuple[Batch, Tensor]]] | None = None

    def take(self, step: int) -> tuple[Batch, Tensor]:
        """The batch of a step, on the device, and how many targets of each row are to be predicted, on the CPU."""
        found = self._ahead[1].result() if self._ahead is not None and self._ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        batch, n_target_B = found
        return batch.each(lambda tensor: tensor.to(self.device, non_blocking=self.device.type == "cuda")), n_target_B

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> tuple[Batch, Tensor]:
        batch = self.read(step)
        n_target_B = (batch.targets >= 0).sum(1)
        return batch.each(Tensor.pin_memory) if self.device.type == "cuda" else batch, n_target_B
