"""Choosing the next token from logits: small pure functions, applied in the order temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from gptstar.errors import UserError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UserError for settings that mean nothing."""
    if not temperature >= 0:
        raise UserError(f"temperature={temperature} must be 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1, or null for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p} must lie in (0, 1], or be null for no limit")


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Leaves the k largest logits of each row, -inf elsewhere (Fan et al., arXiv:1805.04833)."""
    kth = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < kth, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Leaves the smallest set of most likely tokens whose probability reaches p (Holtzman et al., arXiv:1904.09751)."""
    ordered, index = logits_BV.sort(descending=True)
    probability = ordered.softmax(-1)
    # A token stays while those before it have not reached p, so the most likely one always does.
    ordered = ordered.masked_fill(probability.cumsum(-1) - probability >= p, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, index, ordered)


def choose(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token a row, int64 (B, 1). Temperature 0 takes the most likely one."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None:
        logits_BV = keep_top_k(logits_BV, top_k)
    if top_p is not None and top_p < 1:
        logits_BV = keep_top_p(logits_BV, top_p)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
