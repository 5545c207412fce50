"""GPT-Neo (EleutherAI, 2021): local attention in every other layer, scores not scaled."""

from __future__ import annotations

from gptstar.model.config import ModelConfig
from gptstar.pretrained.family import Entry, Family, activation, same, their_activation


def _read(c: dict) -> ModelConfig:
    kinds = [kind for pattern, times in c["attention_types"] for kind in list(pattern) * times]
    return ModelConfig(
        name="gpt_neo",
        vocab_size=c["vocab_size"],
        n_layer=c["num_layers"],
        d_model=c["hidden_size"],
        n_head=c["num_heads"],
        d_ff=c.get("intermediate_size") or 0,
        context=c["max_position_embeddings"],
        block="sequential",
        position="learned",
        activation=activation(c, "activation_function"),
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        windows=[c.get("window_size", 256) if kind == "local" else 0 for kind in kinds],
        score_scale=1.0,
        query_key_value_bias=False,
        tie_head=c.get("tie_word_embeddings", True),
    )


def _write(config: ModelConfig) -> dict:
    windows = [config.window(layer) for layer in range(config.n_layer)]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "vocab_size": config.vocab_size,
        "num_layers": config.n_layer,
        "hidden_size": config.d_model,
        "num_heads": config.n_head,
        "intermediate_size": config.d_feedforward,
        "max_position_embeddings": config.context,
        "activation_function": their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "attention_types": [[["local" if window else "global"], 1] for window in windows],
        "window_size": max(windows) or 256,
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
        entries += same(f"{theirs}.ln_1", f"{ours}.norm1") + same(f"{theirs}.ln_2", f"{ours}.norm2")
        for short, part in (("q", "query"), ("k", "key"), ("v", "value")):
            entries += same(f"{theirs}.attn.attention.{short}_proj", f"{ours}.attention.{part}", ("weight",))
        entries += same(f"{theirs}.attn.attention.out_proj", f"{ours}.attention.output")
        entries += same(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up")
        entries += same(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down")
    return entries if config.tie_head else [*entries, Entry("lm_head.weight", ("head.weight",))]


GPT_NEO = Family("gpt_neo", "<|endoftext|>", _read, _write, _entries, prefix="transformer.")
