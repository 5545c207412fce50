"""Causal self-attention: the kernels, the one place that picks between them, and the sublayer around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.norms import build_norm
from gptstar.model.positions import NoPosition
from gptstar.model.projections import FusedLinear


@dataclass(frozen=True)
class Sight:
    """What the tokens of one forward pass see: made once for all layers with the same position and window.

    bias: what is added to the scaled scores, -inf where a key may not be seen, (B or 1, H or 1, T, S); None: plain
    causal.
    turning: what turns queries and keys, (B, H, T, D), or None.
    position: of each token, (T,) or (B, T). slot: where it stands among the S = n_key tokens that there are with those
    read before, left padding counted, the same shape.
    """

    bias: Tensor | None
    turning: Callable[[Tensor], Tensor] | None
    position: Tensor
    slot: Tensor
    n_key: int
    padding_B: Tensor | None


def visible(slot: Tensor, key_S: Tensor, window: int) -> Tensor:
    """(..., S) bool, True where keys that stand at key_S may be seen by queries that stand at `slot` (...).

    window: how many positions are seen, the query's own included (Beltagy et al., arXiv:2004.05150); 0: all.
    """
    seen = key_S <= slot[..., None]
    return seen & (key_S > slot[..., None] - window) if window else seen


def make_sight(
    scheme: NoPosition,
    window: int,
    slot: Tensor,
    n_key: int,
    padding_B: Tensor | None,
    dtype: torch.dtype,
    first: int = 0,
    document_BT: Tensor | None = None,
) -> Sight:
    """What tokens see through `scheme` and a window.

    slot: where they stand among the n_key keys, (T,) where they are the last of them, (B, T) where rows differ. first:
    the first key that is still there, where a window has left others behind. document_BT: a number for each token's
    document, of which nothing outside is seen; positions count on, so it is for relative ones.
    A bias holds the mask, because SDPA takes a bias or a causal flag. Padding sees itself, so that no row of scores is
    empty, and nothing else sees padding.
    """
    position = slot if padding_B is None else (slot - padding_B[:, None]).clamp(min=0)
    turning = scheme.turning(position, dtype)
    key_S = torch.arange(first, n_key, device=slot.device)
    bias = scheme.score_bias(slot, key_S, dtype)
    window = window if window < n_key else 0
    if bias is None and not window and padding_B is None and document_BT is None and slot.ndim == 1:
        return Sight(None, turning, position, slot, n_key, None)
    seen = visible(slot, key_S, window)
    if padding_B is not None:
        seen = seen & ((key_S >= padding_B[:, None, None]) | (key_S == slot[..., None]))
    if document_BT is not None:
        seen = seen & (document_BT[:, :, None] == document_BT[:, None, :])
    if bias is None:
        bias = torch.zeros((), device=slot.device, dtype=dtype)
    bias = torch.where(seen.unsqueeze(-3), bias, -torch.inf)
    return Sight(bias if bias.ndim == 4 else bias[None], turning, position, slot, n_key, padding_B)


class Kernel(Protocol):
    """Attention of queries over keys and values, the H query heads sharing K key/value heads in order."""

    def __call__(
        self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, scale: float, softcap: float
    ) -> Tensor:
        """(B, H, T, D). bias: of a `Sight`. softcap: scores become softcap * tanh(scores / softcap) first; 0: none."""


def dense_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """The definition, written out: every other kernel is tested against it."""
    n_query, n_key, group = q_BHTD.shape[2], k_BKSD.shape[2], q_BHTD.shape[1] // k_BKSD.shape[1]
    k_BHSD, v_BHSD = k_BKSD.repeat_interleave(group, 1), v_BKSD.repeat_interleave(group, 1)
    scores = q_BHTD @ k_BHSD.transpose(-1, -2) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~_causal(n_query, n_key, scores.device), -torch.inf) if bias is None else scores + bias
    return scores.softmax(-1) @ v_BHSD


def sdpa_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """torch's fused attention, which never writes the (T, S) probabilities to memory. It knows no soft-cap."""
    assert not softcap
    n_query, n_key = q_BHTD.shape[2], k_BKSD.shape[2]
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    square = n_query == n_key  # is_causal aligns to the top left, so it is right for square scores only
    if bias is not None:
        mask, causal = bias, False
    elif square or n_query == 1:
        mask, causal = None, square
    else:
        mask, causal = _causal(n_query, n_key, q_BHTD.device), False
    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _causal(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """What the last n_query of n_key tokens see."""
    key_S = torch.arange(n_key, device=device)
    return visible(key_S[n_key - n_query :], key_S, 0)


KERNELS: dict[str, Kernel] = {"dense": dense_attention, "sdpa": sdpa_attention}


def pick_kernel(config: ModelConfig) -> str:
    """The kernel a model uses: SDPA, unless scores are soft-capped, which it cannot do.

    On a CPU SDPA is the only fused kernel that also has a backward pass with a bias (FlexAttention has none there).
    """
    return "dense" if config.score_softcap else "sdpa"


def key_value_cache(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """What attention keeps of every token it has read: {name: (heads, channels)}."""
    return dict.fromkeys(("key", "value"), (config.n_key_value, config.head_size))


def query_key_value(config: ModelConfig) -> dict[str, int]:
    """The matrices that read the sublayer's input, and their widths."""
    shared = config.n_key_value * config.head_size
    return {"query": config.d_attention, "key": shared, "value": shared}


class AttentionCore(nn.Module):
    """Attention without its projections: heads, cache and kernel. Blocks that fuse projections use it bare."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        self.widths = list(query_key_value(config).values())
        self.scale = config.score_scale or config.head_size**-0.5
        self.softcap = config.score_softcap
        self.kernel = KERNELS[pick_kernel(config)]
        # QK-norm (Henry et al., arXiv:2010.04245): each head's queries and keys normalised before they are compared.
        self.query_norm = build_norm(config.norm, config.head_size, config.norm_eps) if config.qk_norm else None
        self.key_norm = build_norm(config.norm, config.head_size, config.norm_eps) if config.qk_norm else None

    def attend(self, qkv: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """(B, T, (H + 2K) * D), queries then keys then values, -> (B, T, H * D)."""
        B, T, _ = qkv.shape
        q, k, v = (x.view(B, T, -1, self.head_size).transpose(1, 2) for x in qkv.split(self.widths, -1))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if sight.turning is not None:
            q, k = sight.turning(q), sight.turning(k)
        if cache is not None:
            k, v = cache.append(self.layer, "key", k), cache.append(self.layer, "value", v)
        y_BHTD = self.kernel(q, k, v, sight.bias, self.scale, self.softcap)
        return y_BHTD.transpose(1, 2).reshape(B, T, -1)


class Attention(AttentionCore):
    """Query, key and value as one matmul, attention, output projection: (B, T, C) -> (B, T, d_out), by default C."""

    def __init__(self, config: ModelConfig, layer: int, d_out: int | None = None) -> None:
        super().__init__(config, layer)
        self.inputs = FusedLinear(query_key_value(config), config.d_model, bias=config.query_key_value_bias)
        self.output = nn.Linear(config.d_attention, d_out or config.d_model, bias=config.attention_output_bias)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        return self.output(self.attend(self.inputs(x_BTC), sight, cache))
