"""Published shapes have exactly the parameters of the models transformers builds from the published figures."""

import pytest
import torch

from gptstar.configuration import preset
from gptstar.model.describe import parameter_count

transformers = pytest.importorskip("transformers")


def gpt2(n_layer, d_model, n_head):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=n_layer, n_embd=d_model, n_head=n_head))


def neo(n_layer, d_model, n_head):
    config = transformers.GPTNeoConfig(
        hidden_size=d_model,
        num_layers=n_layer,
        num_heads=n_head,
        attention_types=[[["global", "local"], n_layer // 2]],
    )
    return transformers.GPTNeoForCausalLM(config)


def neox(n_layer, d_model, n_head, d_ff, vocab_size=50304):
    config = transformers.GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=d_ff,
    )
    return transformers.GPTNeoXForCausalLM(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=288,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=768,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


PUBLISHED = {
    "gpt2_small": lambda: gpt2(12, 768, 12),
    "gpt2_medium": lambda: gpt2(24, 1024, 16),
    "gpt2_large": lambda: gpt2(36, 1280, 20),
    "gpt2_xl": lambda: gpt2(48, 1600, 25),
    "gpt_neo_125m": lambda: neo(12, 768, 12),
    "gpt_neo_1.3b": lambda: neo(24, 2048, 16),
    "gpt_neo_2.7b": lambda: neo(32, 2560, 20),
    "gptj_6b": lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig()),
    "neox_20b": lambda: neox(44, 6144, 64, 24576, 50432),
    "pythia_14m": lambda: neox(6, 128, 4, 512),
    "pythia_70m": lambda: neox(6, 512, 8, 2048),
    "pythia_160m": lambda: neox(12, 768, 12, 3072),
    "pythia_410m": lambda: neox(24, 1024, 16, 4096),
    "pythia_1b": lambda: neox(16, 2048, 8, 8192),
    "llama_15m": llama,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_exactly_their_parameters(name):
    with torch.device("meta"):
        theirs = sum(p.numel() for p in PUBLISHED[name]().parameters())
    assert parameter_count(preset(name)) == theirs
