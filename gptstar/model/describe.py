"""What a configuration amounts to, by formula: parameters and FLOPs. Tested against built models."""

from __future__ import annotations

from gptstar.model.config import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters, the tied head counted once."""
    c, a, f = config.d_model, config.d_attention, config.d_feedforward
    norms = 1 if config.block == "parallel_shared" else 2
    layer = norms * 2 * c + 3 * (c + 1) * a + (a + 1) * c + (c + 1) * f + (f + 1) * c
    embeddings = config.vocab_size * c * (1 if config.tie_head else 2)
    positions = config.context * c if config.position == "learned" else 0
    return embeddings + positions + config.n_layer * layer + 2 * c


def flops_per_token(config: ModelConfig, n_token: int) -> int:
    """Training FLOPs (forward + backward) a token in sequences of n_token: 6 N + 12 L d_attention T.

    N counts all parameters, the tied head once (Kaplan et al., arXiv:2001.08361, plus attention's own matmuls as in
    Chowdhery et al., arXiv:2204.02311). The causal half that a kernel may skip is not deducted: the convention of
    published MFU figures.
    """
    return 6 * parameter_count(config) + 12 * config.n_layer * config.d_attention * n_token
