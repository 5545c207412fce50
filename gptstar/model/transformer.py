"""GPT: embedding, blocks, final norm, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.attention import masked_bias
from gptstar.model.block import BLOCKS
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.initialization import initialize
from gptstar.model.loss import linear_cross_entropy
from gptstar.model.positions import SCHEMES
from gptstar.model.projections import load_fused_parts


class GPT(nn.Module):
    """A decoder-only transformer built from a ModelConfig, initialised from torch's global random state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = SCHEMES[config.position](config)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head = None if config.tie_head else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(load_fused_parts)
        initialize(self, config)

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the token embedding itself when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens_BT: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """The final norm's output, (B, T, C). With a cache the tokens continue what the cache has seen."""
        start = 0 if cache is None else cache.length
        n_query = tokens_BT.shape[1]
        x_BTC = self.position.embed(self.embedding(tokens_BT), start)
        dtype = torch.get_autocast_dtype(x_BTC.device.type) if torch.is_autocast_enabled(x_BTC.device.type) else None
        bias = self.position.score_bias(n_query, start + n_query, x_BTC.device, x_BTC.dtype)
        bias = masked_bias(bias, n_query, start + n_query)
        if bias is not None and dtype is not None:
            bias = bias.to(dtype)  # SDPA wants bias and queries in one dtype
        for block in self.blocks:
            x_BTC = block(x_BTC, bias, cache)
        if cache is not None:
            cache.advance(n_query)
        return self.norm(x_BTC)

    def logits(self, hidden_BTC: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, (..., V), from the final norm's output (..., C)."""
        return F.linear(hidden_BTC, self.head_weight)

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Logits (B, T, V) for int64 tokens (B, T); with targets (B, T) the mean cross-entropy in nats instead.

        Raises ValueError for a sequence longer than learned positions or the cache.
        """
        hidden_BTC = self.hidden(tokens_BT, cache)
        if targets_BT is None:
            return self.logits(hidden_BTC)
        return linear_cross_entropy(hidden_BTC.flatten(0, 1), self.head_weight, targets_BT.flatten())
