"""What layers keep of tokens already read (attention: keys and values), so that decoding a token costs one token."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Preallocated (n_layer, B, heads, capacity, channels) tensors, filled from the left. `GPT.new_cache` makes one.

    layout: {name: (heads, channels)}, what each layer keeps of a token.
    `length` counts the tokens every layer has seen; the model advances it once a forward pass.
    """

    def __init__(
        self,
        layout: dict[str, tuple[int, int]],
        n_layer: int,
        batch: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.kept = {
            name: torch.zeros(n_layer, batch, heads, capacity, channels, device=device, dtype=dtype)
            for name, (heads, channels) in layout.items()
        }
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        """Stores T new positions of one layer; a view of all positions so far, (B, K, length + T, D)."""
        end = self.length + x_BKTD.shape[2]
        if end > self.capacity:
            raise ValueError(f"the key/value cache holds {self.capacity} tokens, {end} are needed: make it larger")
        whole = self.kept[name][layer]
        whole[:, :, self.length : end] = x_BKTD
        return whole[:, :, :end]

    def advance(self, n_token: int) -> None:
        """Counts n_token positions as seen, once all layers have appended them."""
        self.length += n_token

    def reorder(self, rows_B: Tensor) -> None:
        """Makes row i what row rows_B[i] was; the batch gets as many rows as are named."""
        for name, whole in self.kept.items():
            same = len(rows_B) == whole.shape[1]
            target = whole if same else whole.new_zeros(*whole.shape[:1], len(rows_B), *whole.shape[2:])
            target[:, :, :, : self.length] = whole[:, rows_B, :, : self.length]
            self.kept[name] = target
