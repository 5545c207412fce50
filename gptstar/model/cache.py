"""Keys and values of tokens already read, so that decoding a token costs one token."""

from __future__ import annotations

import torch
from torch import Tensor

from gptstar.model.config import ModelConfig


class KeyValueCache:
    """Preallocated keys and values of every layer: two (n_layer, B, K, capacity, D) tensors, filled from the left.

    `length` counts the tokens every layer has seen; the model advances it once a forward pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.n_layer, batch, config.n_key_value, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Stores T new positions of one layer and returns all positions so far, as views (B, K, length + T, D)."""
        end = self.length + k_BKTD.shape[2]
        if end > self.capacity:
            raise ValueError(f"the key/value cache holds {self.capacity} tokens, {end} are needed: make it larger")
        self.keys[layer, :, :, self.length : end] = k_BKTD
        self.values[layer, :, :, self.length : end] = v_BKTD
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_token: int) -> None:
        """Counts n_token positions as seen, once all layers have appended them."""
        self.length += n_token
