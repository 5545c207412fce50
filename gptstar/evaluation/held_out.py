"""Held-out loss: nats a token and bits a byte over fixed windows of the validation stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.data.batches import read_windows, window_count
from gptstar.data.shards import TokenStream
from gptstar.device import autocast


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy over `tokens` tokens.

    bits_per_byte: loss / ln 2 * tokens / bytes of the whole split, so that tokenizers can be compared. Byte counts
    leave out end-of-text tokens, losses include them.
    """

    loss: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def held_out_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    stream: TokenStream,
    length: int,
    batch: int,
    device: torch.device,
    precision: str = "fp32",
    max_tokens: int | None = None,
) -> HeldOutLoss:
    """The loss of `model(inputs, targets)` over disjoint windows of `length` tokens, each read from its own start.

    max_tokens: about how many tokens, in evenly spaced windows; None reads every window. `batch` windows at a time.
    """
    total = window_count(len(stream), length)
    n_window = total if max_tokens is None else min(total, max(1, max_tokens // length))
    windows = np.arange(n_window) * total // n_window
    nats = 0.0
    for start in range(0, n_window, batch):
        some = windows[start : start + batch]
        inputs, targets = (x.to(device) for x in read_windows(stream, some, length))
        with autocast(precision, device):
            nats += model(inputs, targets).item() * len(some)
    loss = nats / n_window
    tokens_per_byte = len(stream) / max(1, stream.split.bytes)
    return HeldOutLoss(loss, loss / math.log(2) * tokens_per_byte, n_window * length)
