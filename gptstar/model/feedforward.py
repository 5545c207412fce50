"""The position-wise sublayer: up-projection, nonlinearity, down-projection."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.config import ModelConfig
from gptstar.model.own import with_own
from gptstar.model.projections import FusedLinear, Linear


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, x * Phi(x) through erf (Hendrycks & Gimpel, arXiv:1606.08415): GPT*."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU: GPT-2's "gelu_new"."""
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """max(0, x)^2 (So et al., "Primer", arXiv:2109.08668)."""
    return F.relu(x).square()


def gated(activation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks one that reads twice as many channels as it gives."""
    activation.gated = True  # type: ignore[attr-defined]
    return activation


@gated
def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, arXiv:2002.05202); the input holds the gate, then up: (..., 2F) -> (..., F)."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@gated
def geglu(x: Tensor) -> Tensor:
    """gelu(gate) * up (Shazeer, arXiv:2002.05202): (..., 2F) -> (..., F)."""
    gate, up = x.chunk(2, -1)
    return F.gelu(gate) * up


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "swiglu": swiglu,
    "geglu": geglu,
}


def activation(config: ModelConfig) -> Callable[..., Tensor]:
    """The nonlinearity a configuration names."""
    return with_own(ACTIVATIONS[config.activation], config.own)


def input_parts(config: ModelConfig) -> dict[str, int]:
    """The matrices that read the sublayer's input, and their widths."""
    gate = {"gate": config.d_feedforward} if getattr(ACTIVATIONS[config.activation], "gated", False) else {}
    return {**gate, "up": config.d_feedforward}


class FeedForward(nn.Module):
    """down(activation(up(x))): (B, T, C) -> (B, T, F) -> (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inputs = FusedLinear(input_parts(config), config.d_model, bias=config.feedforward_bias)
        self.activation = activation(config)
        self.down = Linear(config.d_feedforward, config.d_model, bias=config.feedforward_bias)

    def up(self, x_BTC: Tensor) -> Tensor:
        """The first half: (B, T, C) -> (B, T, F)."""
        return self.activation(self.inputs(x_BTC))

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(self.up(x_BTC))
