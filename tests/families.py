"""Random models of every published family, made by transformers: small, odd in shape, every weight at random."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")


def gpt2(**changes):
    config = dict(vocab_size=101, n_positions=40, n_embd=28, n_layer=3, n_head=7, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**config, **changes}))


def neo(**changes):
    config = dict(vocab_size=101, max_position_embeddings=40, hidden_size=20, num_layers=4, num_heads=5, window_size=3)
    config |= dict(attention_types=[[["global", "local"], 2]], initializer_range=0.3)
    return transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**{**config, **changes}))


def gptj(**changes):
    config = dict(vocab_size=101, n_positions=40, n_embd=36, n_layer=3, n_head=3, rotary_dim=4, initializer_range=0.3)
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**{**config, **changes}))


def neox(fraction=0.25, **changes):
    config = dict(
        vocab_size=101, max_position_embeddings=40, hidden_size=48, num_hidden_layers=3, initializer_range=0.3
    )
    config |= dict(num_attention_heads=3, intermediate_size=70)
    rope = dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=fraction)
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**{**config, **changes}, rope_parameters=rope))


def llama(**changes):
    config = dict(vocab_size=101, max_position_embeddings=40, hidden_size=40, num_hidden_layers=3, intermediate_size=52)
    config |= dict(num_attention_heads=10, num_key_value_heads=5, initializer_range=0.3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


MODELS = {
    "gpt2": gpt2,
    "gpt2-exact-gelu-unscaled": lambda: gpt2(activation_function="gelu", scale_attn_weights=False, n_inner=30),
    "neo": neo,
    "neo-uneven": lambda: neo(
        attention_types=[[["local"], 1], [["global", "local", "local"], 1]], intermediate_size=33
    ),
    "gptj": gptj,
    "gptj-all-channels": lambda: gptj(rotary_dim=12, n_inner=50),
    "neox": neox,
    "neox-whole-head": lambda: neox(fraction=1.0, hidden_act="gelu_new"),
    "neox-sequential": lambda: neox(use_parallel_residual=False, attention_bias=False),
    "neox-tied": lambda: neox(tie_word_embeddings=True),
    "llama": llama,
    "llama-multi-query-tied-wide": lambda: llama(
        num_key_value_heads=1, head_dim=6, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
}


def perturbed(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
