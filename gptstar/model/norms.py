"""Normalisation over channels. A new one is an entry in `NORMS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": nn.LayerNorm,  # Ba et al., arXiv:1607.06450
    "layernorm_nobias": partial(nn.LayerNorm, bias=False),
    "rmsnorm": nn.RMSNorm,  # Zhang & Sennrich, arXiv:1910.07467: no mean, no bias
}


def build_norm(name: str, width: int, eps: float) -> nn.Module:
    """The norm called `name` over the last `width` channels."""
    return NORMS[name](width, eps=eps)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is one of these."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm))
