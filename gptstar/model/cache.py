"""What layers keep of tokens already read (attention: keys and values), so that decoding a token costs one token."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor


class KeyValueCache:
    """Preallocated (B, heads, capacity, channels) tensors, filled from the left. `GPT.new_cache` makes one.

    layout: {name: (heads, channels)}, what each layer keeps of a token. kept: {name: a tensor a layer}.
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
            name: [torch.zeros(batch, heads, capacity, channels, device=device, dtype=dtype) for _ in range(n_layer)]
            for name, (heads, channels) in layout.items()
        }
        self.capacity = capacity
        self.length = 0

    def n_key(self, n_token: int) -> int:
        """How many tokens there are once n_token more are read."""
        return self.length + n_token

    def slots(self, n_token: int, device: torch.device) -> Tensor:
        """Where the next n_token tokens will stand, (n_token,)."""
        return torch.arange(self.length, self.length + n_token, device=device)

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
        for layers in self.kept.values():
            for layer, whole in enumerate(layers):
                same = len(rows_B) == len(whole)
                target = whole if same else whole.new_zeros(len(rows_B), *whole.shape[1:])
                target[:, :, : self.length] = whole[rows_B, :, : self.length]
                layers[layer] = target


class RowsCache(KeyValueCache):
    """A cache whose rows are sequences of their own: a model reads the next tokens of the first `n_active` together.

    lengths: how many tokens each row holds; `length` is not used.
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
        super().__init__(layout, n_layer, batch, capacity, device, dtype)
        self.lengths = [0] * batch
        self.n_active = 0

    def n_key(self, n_token: int) -> int:
        """How many tokens the longest active row has once all have read n_token more."""
        return max(self.lengths[: self.n_active], default=0) + n_token

    def slots(self, n_token: int, device: torch.device) -> Tensor:
        """Where the next n_token tokens of each active row will stand, (n_active, n_token)."""
        if self.n_key(n_token) > self.capacity:
            raise ValueError(f"a row of the cache holds {self.capacity} tokens, {self.n_key(n_token)} are needed")
        held = torch.tensor(self.lengths[: self.n_active], device=device)
        self._slots = held[:, None] + torch.arange(n_token, device=device)
        self._rows = torch.arange(self.n_active, device=device)[:, None]
        return self._slots

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        whole = self.kept[name][layer]
        whole[self._rows, :, self._slots] = x_BKTD.transpose(1, 2)
        return whole[: self.n_active, :, : self.n_key(x_BKTD.shape[2])]

    def advance(self, n_token: int) -> None:
        for row in range(self.n_active):
            self.lengths[row] += n_token

    def row(self, row: int) -> KeyValueCache:
        """One row as a cache of its own, which shares its memory; set `lengths` when it has read something."""
        view = object.__new__(KeyValueCache)
        view.kept = {name: [whole[row : row + 1] for whole in layers] for name, layers in self.kept.items()}
        view.capacity, view.length = self.capacity, self.lengths[row]
        return view

    def copy(self, source: int, target: int, n_token: int) -> None:
        """Gives one row the first n_token tokens of another, and no more."""
        for whole in chain(*self.kept.values()):
            whole[target, :, :n_token] = whole[source, :, :n_token]
        self.lengths[target] = n_token

    def swap(self, a: int, b: int) -> None:
        """Exchanges two rows."""
        n = max(self.lengths[a], self.lengths[b])
        for whole in chain(*self.kept.values()):
            held = whole[a, :, :n].clone()
            whole[a, :, :n] = whole[b, :, :n]
            whole[b, :, :n] = held
        self.lengths[a], self.lengths[b] = self.lengths[b], self.lengths[a]
