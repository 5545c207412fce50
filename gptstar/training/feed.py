"""Batches on their way to the device: the next one is read while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gptstar.data.packing import Batch


class Feed:
    """Batches by step, as `read` gives them: read ahead by a thread, for a GPU into memory it can fetch from itself.

    masked: whether the model is told which tokens share a document.
    """

    def __init__(self, read: Callable[[int], Batch], device: torch.device, masked: bool) -> None:
        self.read, self.device, self.masked = read, device, masked
        self._thread = ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def take(self, step: int) -> tuple[Batch, int]:
        """The batch of a step, on the device, and how many of its targets are to be predicted."""
        batch = self._ahead[1].result() if self._ahead is not None and self._ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._thread.submit(self._read, step + 1))
        n_target = int((batch.targets >= 0).sum())
        documents = None if batch.documents is None else self._sent(batch.documents)
        return Batch(self._sent(batch.inputs), self._sent(batch.targets), documents), n_target

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    def _read(self, step: int) -> Batch:
        batch = self.read(step)
        documents = batch.documents if self.masked else None
        if self.device.type != "cuda":
            return Batch(batch.inputs, batch.targets, documents)
        pinned = None if documents is None else documents.pin_memory()
        return Batch(batch.inputs.pin_memory(), batch.targets.pin_memory(), pinned)
