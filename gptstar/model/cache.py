"""What layers keep of tokens already read (attention: keys and values), so that decoding a token costs one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor


class KeyValueCache:
    """Preallocated (B, heads, capacity, channels) tensors, filled from the left. `GPT.new_cache` makes one.

    layout: {name: (heads, channels)}, what each layer keeps of a token. kept: {name: a tensor a layer}.
    `length` counts the tokens every layer has seen; the model advances it once a forward pass. Setting it back forgets
    tokens, where `can_go_back` says so.
    """

    slack = 512  # tokens that a layer with a window has room for beside it
    windows: Sequence[int] = ()
    dropped: Mapping[int, int] = MappingProxyType({})  # {window: how many tokens its layers have left behind}

    def __init__(
        self,
        layout: dict[str, tuple[int, int]],
        n_layer: int,
        batch: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        windows: Sequence[int] = (),
    ) -> None:
        """windows: what each layer sees (0: all); none: all layers keep all tokens."""
        self.windows = [window if window > 0 and window + self.slack < capacity else 0 for window in windows]
        self.dropped = dict.fromkeys(filter(None, self.windows), 0)
        places = [window + self.slack if window else capacity for window in self.windows] or [capacity] * n_layer
        self.kept = {
            name: [torch.zeros(batch, heads, n, channels, device=device, dtype=dtype) for n in places]
            for name, (heads, channels) in layout.items()
        }
        self.capacity = capacity
        self.length = 0

    def make_room(self, n_token: int) -> bool:
        """Lets layers with a window leave behind what no token will see any more, where n_token more need its place.

        False where that is not enough: more than `slack` tokens have to come in pieces.
        """
        if not self.dropped:
            return True
        if n_token > self.slack:
            return False
        for window, dropped in self.dropped.items():
            held = self.length - dropped
            if held + n_token <= window + self.slack:
                continue
            # window - 1 would do. With more one may go back; with all there is room for, every token would shift them.
            stay = min(held, window + min(self.slack // 2, self.slack - n_token))
            for layers in self.kept.values():
                for layer, of_layer in enumerate(self.windows):
                    if of_layer == window:
                        whole = layers[layer]
                        whole[:, :, :stay] = whole[:, :, held - stay : held].clone()
            cast(dict[int, int], self.dropped)[window] = self.length - stay
        return True

    def first(self, window: int) -> int:
        """The first token that layers with this window still hold."""
        return self.dropped.get(window, 0)

    def can_go_back(self, length: int) -> bool:
        """Whether all is there that a token after the first `length` would see."""
        return all(dropped <= max(0, length - window + 1) for window, dropped in self.dropped.items())

    def n_key(self, n_token: int) -> int:
        """How many tokens there are once n_token more are read."""
        return self.length + n_token

    def slots(self, n_token: int, device: torch.device) -> Tensor:
        """Where the next n_token tokens will stand, (n_token,)."""
        return torch.arange(self.length, self.length + n_token, device=device)

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        """Stores T new positions of one layer; a view of all positions that it holds, (B, K, S, D)."""
        end = self.length + x_BKTD.shape[2]
        if end > self.capacity:
            raise ValueError(f"the key/value cache holds {self.capacity} tokens, {end} are needed: make it larger")
        whole, first = self.kept[name][layer], self.first(self.windows[layer]) if self.windows else 0
        whole[:, :, self.length - first : end - first] = x_BKTD
        return whole[:, :, : end - first]

    def advance(self, n_token: int) -> None:
        """Counts n_token positions as seen, once all layers have appended them."""
        self.length += n_token

    def reorder(self, rows_B: Tensor) -> None:
        """Makes row i what row rows_B[i] was; the batch gets as many rows as are named."""
        for layers in self.kept.values():
            for layer, whole in enumerate(layers):
                same = len(rows_B) == len(whole)
                target = whole if same else whole.new_zeros(len(rows_B), *whole.shape[1:])
                held = min(self.length, whole.shape[2])
                target[:, :, :held] = whole[rows_B, :, :held]
                layers[layer] = target


class RowsCache(KeyValueCache):
    """A cache whose rows are sequences of their own: a model reads the next tokens of the first `n_active` together.

    lengths: how many tokens each row holds; `length` is not used.
    """

    def __init__(self, layout: dict[str, tuple[int, int]], n_layer: int, batch: int, *more: Any) -> None:
        super().__init__(layout, n_layer, batch, *more)
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
