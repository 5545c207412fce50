"""The loss of every token of a text that is longer than a model reads at once: windows, and what each of them scores.

Windows of 4 tokens over a text t0 ... t6; `.` is read, `x` is read and its successor scored, E is end-of-text:

    exact, stride 4     E t0 t1 t2 t3 t4 t5 t6       original            t0 t1 t2 t3 t4 t5 t6
                        x  x  x  x                                       x  x  x
                                    x  x  x                              (an incomplete window is left out)
    exact, stride 2     x  x  x  x
                              .  .  x  x
                                    .  .  x

exact     Every token is scored once, the first one given end-of-text. The first window scores all of its tokens, later
          ones the last `stride`, each of which sees at least context - stride + 1 tokens and the one that ends a window
          all `context`.
original  GPT*'s published figures (and the perplexity guide of transformers, on which they are based): labels are
          shifted inside the window, so its first token is seen but not scored, and stride = context. What remains after
          the last complete window is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from gptstar.evaluation.forward import hidden_states
from gptstar.evaluation.scoring import token_scores
from gptstar.model.transformer import GPT

PROTOCOLS = ("exact", "original")
SCORES = 2**25  # attention scores of one layer, of a row


@dataclass(frozen=True)
class Window:
    """Reads the tokens start ... end - 1 of a stream and scores first ... end."""

    start: int
    first: int
    end: int


def cut_windows(n_token: int, context: int, stride: int, protocol: str) -> list[Window]:
    """The windows over a stream of n_token tokens (with protocol=exact an end-of-text is the first of them)."""
    if protocol == "original":
        assert stride == context
        starts = range(0, n_token - context + 1, context)
        return [Window(start, start + 1, start + context - 1) for start in starts]
    windows = []
    start, end = 0, 0
    while end < n_token - 1:
        first, end = end + 1, min(start + context, n_token - 1)
        windows.append(Window(start, first, end))
        start += stride
    return windows


@torch.inference_mode()
def score_windows(
    model: GPT, stream: np.ndarray, windows: list[Window], batch_tokens: int, advance: Callable[[int], None]
) -> np.ndarray:
    """Nats of each token of the stream (float32), NaN where no window scores it.

    Reads at most batch_tokens tokens a forward pass, or one window, and tells `advance` how many it has read. Memory
    grows linearly with the windows' length: long ones are read in pieces that continue a key/value cache, because the
    bias of attention scores is (heads, queries, keys), and logits exist for a few hundred positions at a time.
    """
    device = model.device
    nats = np.full(len(stream), np.nan, dtype=np.float32)
    for batch in _batches(windows, batch_tokens):
        inputs_BT = torch.tensor(np.stack([stream[w.start : w.end] for w in batch]), device=device)
        for begin, hidden_BTC in _hidden(model, inputs_BT):
            asked, places = [], []
            for window, hidden_TC in zip(batch, hidden_BTC, strict=True):
                # The output at position i of a window is asked for token start + i + 1.
                stop = window.start + begin + 1 + len(hidden_TC)
                place = np.arange(max(window.first, stop - len(hidden_TC)), stop)
                places.append(place)
                asked.append(hidden_TC[len(hidden_TC) - len(place) :])
            place_N = np.concatenate(places)
            nats[place_N] = -token_scores(model, torch.cat(asked), stream[place_N])[0]
        advance(inputs_BT.numel())
    return nats


def _batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Neighbours of equal length."""
    for length, group in groupby(windows, lambda w: w.end - w.start):
        alike = list(group)
        rows = max(1, batch_tokens // length)
        yield from (alike[at : at + rows] for at in range(0, len(alike), rows))


def _hidden(model: GPT, inputs_BT: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Final hidden states in pieces, each with the position of its first."""
    n_row, n_token = inputs_BT.shape
    piece = max(1, SCORES // (model.config.n_head * n_token))
    cache = model.new_cache(n_row, n_token) if piece < n_token else None
    for begin in range(0, n_token, piece):
        yield begin, hidden_states(model, inputs_BT[:, begin : begin + piece], cache)
