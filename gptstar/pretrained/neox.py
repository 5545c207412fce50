"""GPT-NeoX-20B (Black et al., arXiv:2204.06745) and Pythia (Biderman et al., arXiv:2304.01373)."""

from __future__ import annotations

import torch

from gptstar.model.config import ModelConfig
from gptstar.pretrained.family import Entry, Family, activation, even_rotary, rotary_settings, same


def _read(c: dict) -> ModelConfig:
    config = ModelConfig(
        name="neox",
        vocab_size=c["vocab_size"],
        n_layer=c["num_hidden_layers"],
        d_model=c["hidden_size"],
        n_head=c["num_attention_heads"],
        d_ff=c["intermediate_size"],
        context=c["max_position_embeddings"],
        block="parallel" if c.get("use_parallel_residual", True) else "sequential",
        position="rotary",
        activation=activation(c, "hidden_act"),
        norm_eps=c.get("layer_norm_eps", 1e-5),
        query_key_value_bias=c.get("attention_bias", True),
        attention_output_bias=c.get("attention_bias", True),
        tie_head=c.get("tie_word_embeddings", False),
        **rotary_settings(c, fraction=0.25),
    )
    return even_rotary(config)


def _write(config: ModelConfig) -> dict:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_head,
        "intermediate_size": config.d_feedforward,
        "max_position_embeddings": config.context,
        "use_parallel_residual": config.block == "parallel",
        # Their "gelu_new" is a slower spelling of the same tanh formula.
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}[config.activation],
        "layer_norm_eps": config.norm_eps,
        "attention_bias": config.query_key_value_bias,
        "tie_word_embeddings": config.tie_head,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rotary_base,
            "partial_rotary_factor": config.rotary_fraction,
        },
    }


def _entries(config: ModelConfig) -> list[Entry]:
    n_head, size = config.n_head, config.head_size
    entries = [Entry("gpt_neox.embed_in.weight", ("embedding.weight",)), *same("gpt_neox.final_layer_norm", "norm")]
    kinds = ("weight", "bias") if config.query_key_value_bias else ("weight",)
    for n in range(config.n_layer):
        theirs, ours = f"gpt_neox.layers.{n}", f"blocks.{n}"
        entries += same(f"{theirs}.input_layernorm", f"{ours}.norm1")
        entries += same(f"{theirs}.post_attention_layernorm", f"{ours}.norm2")
        entries += [
            Entry(  # rows lie as (head, query/key/value, channel)
                f"{theirs}.attention.query_key_value.{kind}",
                tuple(f"{ours}.attention.{part}.{kind}" for part in ("query", "key", "value")),
                lambda t: [p.flatten(0, 1) for p in t.unflatten(0, (n_head, 3, size)).unbind(1)],
                lambda parts: torch.stack([p.unflatten(0, (n_head, size)) for p in parts], 1).flatten(0, 2),
            )
            for kind in kinds
        ]
        entries += same(f"{theirs}.attention.dense", f"{ours}.attention.output", kinds)
        entries += same(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.feedforward.up")
        entries += same(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.feedforward.down")
    return entries if config.tie_head else [*entries, Entry("embed_out.weight", ("head.weight",))]


NEOX = Family(
    "gpt_neox",
    "<|endoftext|>",
    _read,
    _write,
    _entries,
    prefix="gpt_neox.",
    aliases={"lm_head.weight": "embed_out.weight"},
)
