"""What a configuration amounts to: parameters and FLOPs."""

from __future__ import annotations

import torch

from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters, the tied head counted once, of a model built without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())


def flops_per_token(config: ModelConfig, n_token: int, n_frozen: int = 0) -> int:
    """Training FLOPs (forward + backward) a token in sequences of n_token: 6 N + 12 L d_attention T.

    N counts all parameters, the tied head once (Kaplan et al., arXiv:2001.08361, plus attention's own matmuls as in
    Chowdhery et al., arXiv:2204.02311). The causal half that a kernel may skip is not deducted: the convention of
    published MFU figures. A block without attention has its own second term (`Block.mixing_flops`). The n_frozen
    parameters that are not trained cost 4 each instead of 6: they have no gradient of their own.
    """
    block = BLOCKS[config.block]
    applied = parameter_count(config) - config.n_layer * block.mixing_parameters(config)
    return 6 * applied - 2 * n_frozen + 3 * config.n_layer * block.mixing_flops(config, n_token)
