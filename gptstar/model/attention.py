"""Causal self-attention: the kernels, the one place that picks between them, and the sublayer around them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.projections import FusedLinear


def causal_mask(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """(n_query, n_key) bool, True where a key may be seen; the queries are the last n_query positions."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def dense_attention(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, bias_HTS: Tensor | None) -> Tensor:
    """The definition, written out: every other kernel is tested against it. (B, H, T, D)."""
    n_query, n_key = q_BHTD.shape[2], k_BHSD.shape[2]
    scores = q_BHTD @ k_BHSD.transpose(-1, -2) / math.sqrt(q_BHTD.shape[-1])
    if bias_HTS is not None:
        scores = scores + bias_HTS
    scores = scores.masked_fill(~causal_mask(n_query, n_key, scores.device), -torch.inf)
    return scores.softmax(-1) @ v_BHSD


def sdpa_attention(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, bias_HTS: Tensor | None) -> Tensor:
    """torch's fused attention, which never writes the (T, S) probabilities to memory. (B, H, T, D)."""
    n_query, n_key = q_BHTD.shape[2], k_BHSD.shape[2]
    if bias_HTS is None:
        square = n_query == n_key  # is_causal aligns to the top left, so it is right for square scores only
        mask = None if square or n_query == 1 else causal_mask(n_query, n_key, q_BHTD.device)
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=square)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=bias_HTS[None])


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "dense": dense_attention,
    "sdpa": sdpa_attention,
}


def pick_kernel() -> str:
    """The kernel a model uses. SDPA everywhere: on a CPU it is the only fused kernel that also has a backward
    pass with a bias (FlexAttention has none there)."""
    return "sdpa"


def masked_bias(bias_HTS: Tensor | None, n_query: int, n_key: int) -> Tensor | None:
    """A score bias with the causal mask written into it, made once a forward pass and used by every layer.

    SDPA accepts either a mask or a causal flag, so a bias has to carry the mask itself.
    """
    if bias_HTS is None:
        return None
    return bias_HTS.masked_fill(~causal_mask(n_query, n_key, bias_HTS.device), -torch.inf)


class AttentionCore(nn.Module):
    """Attention without its projections: heads, cache and kernel. Blocks that fuse projections use it bare."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.d_head, self.layer = config.n_head, config.head_size, layer
        self.kernel = KERNELS[pick_kernel()]

    def forward(self, qkv_BT3A: Tensor, bias_HTS: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        """(B, T, 3 * H * D), queries then keys then values, -> (B, T, H * D). `bias_HTS` holds the causal mask."""
        B, T, _ = qkv_BT3A.shape
        q, k, v = qkv_BT3A.view(B, T, 3, self.n_head, self.d_head).permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y_BHTD = self.kernel(q, k, v, bias_HTS)
        return y_BHTD.transpose(1, 2).reshape(B, T, self.n_head * self.d_head)


class Attention(nn.Module):
    """Query, key and value as one matmul, attention, output projection: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.d_attention
        self.qkv = FusedLinear({"query": width, "key": width, "value": width}, config.d_model)
        self.core = AttentionCore(config, layer)
        self.output = nn.Linear(width, config.d_model)

    def forward(self, x_BTC: Tensor, bias_HTS: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        return self.output(self.core(self.qkv(x_BTC), bias_HTS, cache))
