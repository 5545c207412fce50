"""Normalisation over channels. A new one is an entry in `NORMS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.config import ModelConfig
from gptstar.model.own import with_own


class LayerNorm(nn.LayerNorm):
    """torch's, for input of more bits than its weights: a sharded model gathers those in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _no_narrower(self.weight, x), _no_narrower(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, _no_narrower(self.weight, x), self.eps)


def _no_narrower(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(torch.promote_types(parameter.dtype, x.dtype))


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": LayerNorm,  # Ba et al., arXiv:1607.06450
    "layernorm_nobias": partial(LayerNorm, bias=False),
    "rmsnorm": RMSNorm,  # Zhang & Sennrich, arXiv:1910.07467: no mean, no bias
}


def build_norm(config: ModelConfig, width: int) -> nn.Module:
    """The norm a configuration names, over the last `width` channels."""
    return with_own(NORMS[config.norm], config.own)(width, eps=config.norm_eps)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is one of these."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm))
