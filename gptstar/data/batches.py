"""Which windows of the token stream make up step n: a pure function of (seed, step).

The stream is cut into windows of T tokens (each reads one token more, the last target). Every epoch is one
permutation of all windows, computed in O(1) for any position, so nothing has to be replayed or stored to resume,
and any number of ranks sees the same global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.data.shards import TokenStream

_ROUNDS = 8


@dataclass(frozen=True)
class BatchOrder:
    """The windows of each step: `batch_size` of them, of which this is the share of one rank."""

    n_window: int
    batch_size: int
    seed: int
    rank: int = 0
    n_rank: int = 1

    def windows(self, step: int) -> np.ndarray:
        """The window numbers of a step (from 0), int64 (batch_size / n_rank,). A step may straddle two epochs."""
        share = self.batch_size // self.n_rank
        position = step * self.batch_size + self.rank * share + np.arange(share, dtype=np.int64)
        epoch, index = np.divmod(position, self.n_window)
        return np.concatenate([permute(index[epoch == e], self.n_window, self.seed, int(e)) for e in np.unique(epoch)])

    def epoch(self, step: int) -> float:
        """Passes over the corpus when `step` steps are done."""
        return step * self.batch_size / self.n_window


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random permutation of 0..size-1, applied to some indices.

    A Feistel network over the next power of four, walked until it lands inside (format-preserving encryption by
    cycle walking, Black & Rogaway 2002): a bijection for every size, with no table of it anywhere.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    keys = [_mix(np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * _ROUNDS + r) % 2**64)) for r in range(_ROUNDS)]

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << np.uint64(half) | right

    out = encrypt(index.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def _mix(x):
    """splitmix64's finaliser (Steele et al., 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def window_count(n_token: int, length: int) -> int:
    """Disjoint windows of `length` inputs in a stream; the last token can only be a target."""
    return max(0, (n_token - 1) // length)


def document_numbers(tokens_BT: Tensor, eot_id: int) -> Tensor:
    """Which document of its row each token belongs to, int64 (B, T), from 0; an end-of-text token ends its own."""
    ends_BT = (tokens_BT == eot_id).long()
    return ends_BT.cumsum(1) - ends_BT


def read_windows(stream: TokenStream, windows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and next-token targets of some windows, two int64 tensors (len(windows), length)."""
    rows = torch.from_numpy(np.stack([stream.read(int(w) * length, length + 1) for w in windows]))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
