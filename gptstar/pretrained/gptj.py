"""GPT-J (Wang & Komatsuzaki, 2021): one shared norm, interleaved rotary positions, a head with a bias."""

from __future__ import annotations

from gptstar.model.config import ModelConfig
from gptstar.model.positions import rotary_channels
from gptstar.pretrained.family import Entry, Family, activation, same, their_activation


def _read(c: dict) -> ModelConfig:
    head_size = c["n_embd"] // c["n_head"]
    return ModelConfig(
        name="gptj",
        vocab_size=c["vocab_size"],
        n_layer=c["n_layer"],
        d_model=c["n_embd"],
        n_head=c["n_head"],
        d_ff=c.get("n_inner") or 0,
        context=c["n_positions"],
        block="parallel_shared",
        position="rotary",
        rotary_fraction=(c.get("rotary_dim") or head_size) / head_size,
        rotary_interleaved=True,
        activation=activation(c, "activation_function"),
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        query_key_value_bias=False,
        attention_output_bias=False,
        tie_head=c.get("tie_word_embeddings", False),
        head_bias=True,
    )


def _write(config: ModelConfig) -> dict:
    return {
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": config.vocab_size,
        "n_layer": config.n_layer,
        "n_embd": config.d_model,
        "n_head": config.n_head,
        "n_inner": config.d_feedforward,
        "n_positions": config.context,
        "rotary_dim": rotary_channels(config),
        "activation_function": their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_head,
    }


def _entries(config: ModelConfig) -> list[Entry]:
    entries = [
        Entry("transformer.wte.weight", ("embedding.weight",)),
        *same("transformer.ln_f", "norm"),
        Entry("lm_head.bias", ("head_bias",)),
    ]
    for n in range(config.n_layer):
        theirs, ours = f"transformer.h.{n}", f"blocks.{n}"
        entries += same(f"{theirs}.ln_1", f"{ours}.norm")
        for short, part in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            entries += same(f"{theirs}.attn.{short}_proj", f"{ours}.attention.{part}", ("weight",))
        entries += same(f"{theirs}.mlp.fc_in", f"{ours}.feedforward.up")
        entries += same(f"{theirs}.mlp.fc_out", f"{ours}.feedforward.down")
    return entries if config.tie_head else [*entries, Entry("lm_head.weight", ("head.weight",))]


GPTJ = Family("gptj", "<|endoftext|>", _read, _write, _entries, prefix="transformer.")
