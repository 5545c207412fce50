"""How many tokens one forward pass may read: as many as are fast, if memory holds them."""

from __future__ import annotations

import torch

from gptstar.device import free_memory
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.offload.stream import layers_of

# More than this makes no device faster: on a CPU matrix products are at their peak, and what they produce still fits
# its caches.
FAST_TOKENS = {"cpu": 1024, "cuda": 32_768}
# What a forward pass costs apart from its tokens, in tokens: on a GPU what it could read while a pass is launched.
PASS_TOKENS = {"cpu": 24, "cuda": 4096}
SHARE = 0.5  # of the free memory; the rest is for logits, attention scores and other processes


def token_budget(setting: str | int, model: GPT) -> int:
    """Tokens a forward pass: a number, or auto. Raises UserError for anything else."""
    if str(setting) != "auto":
        return read_setting(setting)
    fits = tokens_that_fit(model)
    return max(1, min(FAST_TOKENS.get(model.device.type, FAST_TOKENS["cpu"]), fits))


def read_setting(setting: str | int) -> int:
    """A number of tokens. Raises UserError for anything else."""
    try:
        tokens = int(setting)
    except ValueError:
        tokens = 0
    if tokens < 1:
        raise UserError(f"batch_tokens={setting!r} must be auto or a number of tokens, at least 1")
    return tokens


def tokens_that_fit(model: GPT) -> int:
    """Tokens that there is memory for at a time, or that were planned for under a budget."""
    layers = layers_of(model)
    if layers is not None and layers.room is not None:
        return layers.room.at_once
    return int(SHARE * free_memory(model.device)) // bytes_per_token(model)


def pass_cost(device: torch.device) -> int:
    """The fixed cost of a forward pass, in tokens."""
    return PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])


def bytes_per_token(model: GPT) -> int:
    """Upper estimate of what one token of a forward pass occupies: activations of one layer, keys and values of all."""
    config = model.config
    key_value = config.n_key_value * config.head_size
    layer = 6 * config.d_model + 3 * (config.d_attention + 2 * key_value) + 3 * config.d_feedforward
    return model.dtype.itemsize * (layer + 2 * config.n_layer * key_value)
