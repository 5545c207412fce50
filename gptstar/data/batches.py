"""Windows of a token stream: in what order they come, how many there are, which documents they hold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gptstar.data.shards import TokenStream
from gptstar.data.words import mix

_ROUNDS = 8


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random permutation of 0..size-1, applied to some indices.

    A Feistel network over the next power of four, walked until it lands inside (format-preserving encryption by
    cycle walking, Black & Rogaway 2002): a bijection for every size, with no table of it anywhere.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    rounds = [(seed * 0x9E3779B97F4A7C15 + epoch * _ROUNDS + r) % 2**64 for r in range(_ROUNDS)]
    keys = mix(np.array(rounds, np.uint64))

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        return left << np.uint64(half) | right

    out = encrypt(index.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def window_count(n_token: int, length: int) -> int:
    """Disjoint windows of `length` inputs in a stream; the last token can only be a target."""
    return max(0, (n_token - 1) // length)


def document_numbers(tokens_BT: Tensor, eot_id: int) -> Tensor:
    """Which document of its row each token belongs to, int64 (B, T), from 0; an end-of-text token ends its own."""
    ends_BT = (tokens_BT == eot_id).long()
    return ends_BT.cumsum(1) - ends_BT


def read_windows(stream: TokenStream, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and next-token targets of windows, by their first tokens; two int64 tensors (len(starts), length)."""
    rows = torch.from_numpy(np.stack([stream.read(start, length + 1) for start in starts.tolist()]))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
