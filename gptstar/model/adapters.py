"""Bottleneck adapters: a little that is trained inside a model that is not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.config import ModelConfig
from gptstar.model.norms import is_norm
from gptstar.model.projections import Linear


class ZeroLinear(Linear):
    """A Linear that starts at zero."""

    def initialize_own(self) -> None:
        """Called after the general initialisation."""
        nn.init.zeros_(self.weight)


class Adapter(nn.Module):
    """x + up(gelu(down(x))) on a sublayer's output, (..., C) -> (..., C) (Houlsby et al., arXiv:1902.00751).

    `up` starts at zero, so that a model with fresh adapters is the model without.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.down = Linear(config.d_model, config.adapter_width)
        self.up = ZeroLinear(config.adapter_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


def build_adapter(config: ModelConfig) -> nn.Module:
    """An adapter, or nothing where the configuration has none."""
    return Adapter(config) if config.adapter_width else nn.Identity()


def is_adapter(name: str) -> bool:
    """Whether a tensor's name in a state dict is an adapter's."""
    return ".adapter" in name


def freeze_all_but_adapters(model: nn.Module) -> None:
    """Leaves adapters, norms, embeddings and positions trainable (a tied head is an embedding), and no more."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, Adapter) or is_norm(module) or name in ("embedding", "position"):
            module.requires_grad_(True)
