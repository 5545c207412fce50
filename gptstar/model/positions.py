"""Where a token stands: one small object a scheme. Attention asks it and knows no names.

A scheme may add to the embedding (`embed`) or bias the attention scores (`score_bias`); the base class does neither.
A new scheme is a class here and an entry in `SCHEMES`; its key there is its name in configurations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptstar.model.config import ModelConfig


class NoPosition(nn.Module):
    """Order only through the causal mask (Haviv et al., arXiv:2203.16634)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def embed(self, x_BTC: Tensor, start: int) -> Tensor:
        """The embeddings of positions start, start+1, ... with what this scheme adds to them."""
        return x_BTC

    def score_bias(self, n_query: int, n_key: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """What to add to the scaled scores, (H, n_query, n_key), or None.

        The queries are the last n_query of the n_key positions. The causal mask is not in it.
        """
        return None


class LearnedPosition(NoPosition):
    """GPT-2's trained table of one vector a position; nothing exists beyond its last row."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.context, config.d_model))

    def embed(self, x_BTC: Tensor, start: int) -> Tensor:
        end = start + x_BTC.shape[1]
        if end > len(self.weight):
            raise ValueError(
                f"a sequence of {end} tokens is longer than the {len(self.weight)} learned positions: "
                "shorten the input, or use a model with relative positions (alibi)"
            )
        return x_BTC + self.weight[start:end]


def alibi_slopes(n_head: int) -> list[float]:
    """One slope a head (Press et al., arXiv:2108.12409).

    A power of two H: 2^(-8k/H), k = 1..H. Otherwise the slopes of the next lower power of two P, followed by every
    second slope of 2P, from its first, as many as are missing.
    """
    power = 2 ** math.floor(math.log2(n_head))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    return slopes + [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * power + 1, 2)][: n_head - power]


class ALiBi(NoPosition):
    """Scores fall linearly with distance: -slope * (i - j), added after the 1/sqrt(d_head) scaling."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.slopes = alibi_slopes(config.n_head)

    def score_bias(self, n_query: int, n_key: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        # In fp32 even for a bf16 model, whose numbers cannot tell positions beyond 256 apart.
        exact = torch.promote_types(dtype, torch.float32)
        slopes_H = torch.tensor(self.slopes, device=device, dtype=exact)
        j_S = torch.arange(n_key, device=device, dtype=exact)
        i_T = j_S[n_key - n_query :]
        return (slopes_H[:, None, None] * (j_S[None, :] - i_T[:, None])).to(dtype)


SCHEMES: dict[str, type[NoPosition]] = {"none": NoPosition, "learned": LearnedPosition, "alibi": ALiBi}
