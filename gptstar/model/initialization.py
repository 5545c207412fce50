"""All initialisation, in one table.

what                               distribution
-----------------------------------------------------------------------------------------
embeddings, every matrix           normal(0, init_std)
matrices that write into the       normal(0, init_std / sqrt(additions)), additions = how many times a forward
  residual stream                  pass adds to the stream: 2 a layer for sequential blocks (GPT-2, Radford et
                                   al., 2019), 1 a layer for parallel ones (GPT*)
  the same, zero_init_residual     0 (Fixup, Zhang et al., arXiv:1901.09321)
  matrices that read channels      the same, smaller by muP's factor (`mup.py`)
biases                             0
norm weights                       1
what a class of one's own gives     stays: parameters that its `__init__` made with torch.ones, torch.zeros, ...; those
  its parameters                   made with torch.empty are drawn as above (`own.py`)
what a module's `initialize_own`   learned slopes (`positions.py`), gates (`gmlp.py`), adapters (`adapters.py`),
  fills                            weights of shortcuts (`mix.py`); with `draws = False` no random number is spent on
                                   its parameters before, so all other weights of a seed are those without it
"""

from __future__ import annotations

import torch
from torch import nn

from gptstar.model.block import Block
from gptstar.model.config import ModelConfig
from gptstar.model.mup import channel_readers
from gptstar.model.own import has_values


def residual_scale(config: ModelConfig, additions: int) -> float:
    """What a matrix that writes into the stream is scaled by; additions: to the stream, a layer."""
    return 0.0 if config.zero_init_residual else (config.n_layer * additions) ** -0.5


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Fills every parameter of a GPT, built within `empty_is_marked`, by the table above, from torch's global random
    state.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if has_values(module, parameter):
                continue
            if name in ("bias", "head_bias"):
                parameter.zero_()
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                parameter.fill_(1.0)
            elif getattr(module, "draws", True):
                parameter.normal_(0.0, config.init_std)
    for reader in channel_readers(model):
        reader.mul_(config.width_ratio**-0.5)
    for module in model.modules():
        if isinstance(module, Block):
            for weight in module.residual_outputs():
                weight.mul_(residual_scale(config, module.residual_additions))
        own = getattr(module, "initialize_own", None)
        if callable(own):
            own()
