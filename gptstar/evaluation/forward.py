"""The model as evaluation calls it: without gradients, through the fastest matrix products the device has."""

from __future__ import annotations

import torch
from torch import Tensor

from gptstar.cpu.fast_linear import fast_linear
from gptstar.model.cache import KeyValueCache
from gptstar.model.transformer import GPT


@torch.no_grad()
def hidden_states(model: GPT, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
    """The final norm's output, (B, T, C)."""
    with fast_linear(model.device, model.dtype):
        return model.hidden(tokens_BT, cache)


@torch.no_grad()
def logits_of(model: GPT, hidden_NC: Tensor) -> Tensor:
    """Scores of every token of the vocabulary, (N, V)."""
    with fast_linear(model.device, model.dtype):
        return model.logits(hidden_NC)
