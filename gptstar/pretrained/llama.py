"""The Llama-2 family (Touvron et al., arXiv:2307.09288): RMSNorm, SwiGLU, rotary positions, grouped-query heads."""

from __future__ import annotations

from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.pretrained.family import Entry, Family, even_rotary, rotary_settings, same


def _read(c: dict) -> ModelConfig:
    if c.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act={c['hidden_act']!r} is not supported: silu is")
    config = ModelConfig(
        name="llama",
        vocab_size=c["vocab_size"],
        n_layer=c["num_hidden_layers"],
        d_model=c["hidden_size"],
        n_head=c["num_attention_heads"],
        n_kv_head=c.get("num_key_value_heads") or 0,
        d_head=c.get("head_dim") or 0,
        d_ff=c["intermediate_size"],
        context=c["max_position_embeddings"],
        block="sequential",
        position="rotary",
        norm="rmsnorm",
        norm_eps=c.get("rms_norm_eps", 1e-6),
        activation="swiglu",
        query_key_value_bias=c.get("attention_bias", False),
        attention_output_bias=c.get("attention_bias", False),
        feedforward_bias=c.get("mlp_bias", False),
        tie_head=c.get("tie_word_embeddings", False),
        **rotary_settings(c, fraction=1.0),
    )
    if config.rotary_fraction != 1:
        raise UserError(f"partial_rotary_factor={config.rotary_fraction} is not supported: 1 is")
    return even_rotary(config)


def _write(config: ModelConfig) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_key_value,
        "head_dim": config.head_size,
        "intermediate_size": config.d_feedforward,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.query_key_value_bias,
        "mlp_bias": config.feedforward_bias,
        "tie_word_embeddings": config.tie_head,
        "rope_theta": config.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
    }


def _entries(config: ModelConfig) -> list[Entry]:
    attention = ("weight", "bias") if config.query_key_value_bias else ("weight",)
    mlp = ("weight", "bias") if config.feedforward_bias else ("weight",)
    entries = [Entry("model.embed_tokens.weight", ("embedding.weight",)), Entry("model.norm.weight", ("norm.weight",))]
    for n in range(config.n_layer):
        theirs, ours = f"model.layers.{n}", f"blocks.{n}"
        entries += same(f"{theirs}.input_layernorm", f"{ours}.norm1", ("weight",))
        entries += same(f"{theirs}.post_attention_layernorm", f"{ours}.norm2", ("weight",))
        for short, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            entries += same(f"{theirs}.self_attn.{short}_proj", f"{ours}.attention.{part}", attention)
        for part in ("gate", "up", "down"):
            entries += same(f"{theirs}.mlp.{part}_proj", f"{ours}.feedforward.{part}", mlp)
    return entries if config.tie_head else [*entries, Entry("lm_head.weight", ("head.weight",))]


LLAMA = Family("llama", "</s>", _read, _write, _entries, prefix="model.")
