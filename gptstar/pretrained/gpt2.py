"""GPT-2 (Radford et al., 2019), transformers' layout."""

from __future__ import annotations

from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.pretrained.family import Entry, Family, activation, same, their_activation, transposed


def _read(c: dict) -> ModelConfig:
    if c.get("scale_attn_by_inverse_layer_idx"):
        raise UserError("scale_attn_by_inverse_layer_idx=true is not supported")
    return ModelConfig(
        name="gpt2",
        vocab_size=c["vocab_size"],
        n_layer=c["n_layer"],
        d_model=c["n_embd"],
        n_head=c["n_head"],
        d_ff=c.get("n_inner") or 0,
        context=c["n_positions"],
        block="sequential",
        position="learned",
        activation=activation(c, "activation_function"),
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        score_scale=0.0 if c.get("scale_attn_weights", True) else 1.0,
        tie_head=c.get("tie_word_embeddings", True),
    )


def _write(config: ModelConfig) -> dict:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_layer": config.n_layer,
        "n_embd": config.d_model,
        "n_head": config.n_head,
        "n_inner": config.d_feedforward,
        "n_positions": config.context,
        "activation_function": their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.score_scale != 1.0,
        "tie_word_embeddings": config.tie_head,
    }


def _entries(config: ModelConfig) -> list[Entry]:
    entries = [
        Entry("transformer.wte.weight", ("embedding.weight",)),
        Entry("transformer.wpe.weight", ("position.learned.weight",)),
        *same("transformer.ln_f", "norm"),
    ]
    for n in range(config.n_layer):
        theirs, ours = f"transformer.h.{n}", f"blocks.{n}"
        attention = [f"{ours}.attention.{part}" for part in ("query", "key", "value")]
        entries += same(f"{theirs}.ln_1", f"{ours}.norm1") + same(f"{theirs}.ln_2", f"{ours}.norm2")
        entries += transposed(f"{theirs}.attn.c_attn", *attention)
        entries += transposed(f"{theirs}.attn.c_proj", f"{ours}.attention.output")
        entries += transposed(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up")
        entries += transposed(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down")
    return entries if config.tie_head else [*entries, Entry("lm_head.weight", ("head.weight",))]


GPT2 = Family("gpt2", "<|endoftext|>", _read, _write, _entries, prefix="transformer.")
