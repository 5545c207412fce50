"""All initialisation, in one table.

what                               distribution
-----------------------------------------------------------------------------------------
embeddings, every matrix           normal(0, init_std)
matrices that write into the       normal(0, init_std / sqrt(additions)), additions = how many times a forward
  residual stream                  pass adds to the stream: 2 a layer for sequential blocks (GPT-2, Radford et
                                   al., 2019), 1 a layer for parallel ones (GPT*)
                                   either by muP's factor where they read channels (`mup.py`)
biases                             0
norm weights                       1
what a module's `initialize_own`   learned slopes (`positions.py`), gates (`gmlp.py`), adapters (`adapters.py`)
  fills
"""

from __future__ import annotations

import torch
from torch import nn

from gptstar.model.block import Block
from gptstar.model.config import ModelConfig
from gptstar.model.mup import channel_readers


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Fills every parameter of a GPT by the table above, from torch's global random state."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("bias", "head_bias"):
                parameter.zero_()
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.init_std)
    for reader in channel_readers(model):
        reader.mul_(config.width_ratio**-0.5)
    for module in model.modules():
        if isinstance(module, Block):
            for weight in module.residual_outputs():
                weight.mul_((config.n_layer * module.residual_additions) ** -0.5)
        own = getattr(module, "initialize_own", None)
        if callable(own):
            own()
