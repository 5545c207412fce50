"""The position-wise sublayer: up-projection, nonlinearity, down-projection."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.config import ModelConfig


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, x * Phi(x) through erf (Hendrycks & Gimpel, arXiv:1606.08415): GPT*."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU: GPT-2's "gelu_new"."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh}


class FeedForward(nn.Module):
    """down(activation(up(x))): (B, T, C) -> (B, T, F) -> (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_feedforward)
        self.down = nn.Linear(config.d_feedforward, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BTC)))
