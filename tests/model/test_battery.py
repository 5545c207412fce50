"""The battery: the same questions to every preset (shrunk, every switch kept) and to a random sample of the space."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.configuration import config_directory, preset
from gptstar.lab.battery import MODEL_QUESTIONS, N_TOKEN, Asked, build, compiles_to_the_same, shrunk
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.describe import parameter_count
from gptstar.model.feedforward import ACTIVATIONS
from gptstar.model.norms import NORMS
from gptstar.model.positions import SCHEMES

PRESETS = sorted(path.stem for path in (config_directory() / "model").glob("*.yaml"))


@st.composite
def configurations(draw) -> ModelConfig:
    kv, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    block = draw(st.sampled_from(sorted(BLOCKS)))
    scheme = st.sampled_from(["none", "learned", "sinusoidal"] if block == "gmlp" else sorted(SCHEMES))
    flag = st.booleans()
    scale, base_width = draw(st.sampled_from([0.0, 1.0])), draw(st.sampled_from([0, 8, 48]))
    return ModelConfig(
        vocab_size=97,
        n_layer=draw(st.integers(1, 3)),
        d_model=draw(st.sampled_from([8, 20, 24])),
        n_head=kv * group,
        n_kv_head=kv,
        d_head=draw(st.sampled_from([4, 8, 10])),
        d_ff=draw(st.sampled_from([12, 40])),
        context=32,
        block=block,
        adapter_width=draw(st.sampled_from([0, 0, 3])),
        position=draw(scheme),
        layer_positions=draw(st.lists(scheme, max_size=3)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        norm=draw(st.sampled_from(sorted(NORMS))),
        sandwich_norm=draw(flag),
        embedding_norm=draw(flag),
        embedding_shortcut=draw(flag),
        zero_init_residual=draw(flag),
        rotary_fraction=draw(st.sampled_from([0.5, 1.0])),
        rotary_interleaved=draw(flag),
        windows=draw(st.lists(st.sampled_from([0, 1, 4]), max_size=2)),
        qk_norm=draw(flag),
        value_residual=block != "gmlp" and draw(flag),
        score_scale=scale,
        score_softcap=draw(st.sampled_from([0.0, 5.0])),
        query_key_value_bias=draw(flag),
        attention_output_bias=draw(flag),
        feedforward_bias=draw(flag),
        tie_head=draw(flag),
        head_bias=draw(flag),
        logit_softcap=draw(st.sampled_from([0.0, 3.0])),
        pad_vocab_to=draw(st.sampled_from([1, 64])),
        init_std=0.3,
        mup_base_width=base_width,
        mup_base_head=draw(st.sampled_from([0, 6])) if base_width and not scale else 0,
    )


def answers_every_question(config: ModelConfig) -> None:
    asked = Asked(config)
    for question in MODEL_QUESTIONS:
        question(asked)
    n_parameter = sum(p.numel() for p in asked.model.parameters())
    assert parameter_count(config) == n_parameter == formula(config)


def distinct_presets() -> list[str]:
    """One of all presets that are the same once shrunk."""
    shapes = {repr(dataclasses.replace(shrunk(preset(name)), name="")): name for name in PRESETS}
    return sorted(shapes.values())


def formula(config: ModelConfig) -> int:
    """Parameters, written out."""
    c, f, d = config.d_model, config.d_feedforward, config.head_size
    a, kv = config.n_head * d, config.n_key_value * d
    norm = {"layernorm": 2, "layernorm_nobias": 1, "rmsnorm": 1}[config.norm]
    gates = 2 if config.activation in ("swiglu", "geglu") else 1
    mlp = config.block in ("gmlp", "amlp")
    layer = gates * c * f + f * c + (gates * f + c) * config.feedforward_bias
    if config.block != "gmlp":
        written = f if mlp else c
        layer += c * (a + 2 * kv) + (a + 2 * kv) * config.query_key_value_bias
        layer += a * written + written * config.attention_output_bias + 2 * norm * d * config.qk_norm
    layer += (config.context**2 + config.context + norm * f) * mlp
    one_norm = config.block in ("parallel_shared", "gmlp", "amlp")
    layer += norm * c * (1 if one_norm else 2) * (2 if config.sandwich_norm else 1)
    if config.adapter_width:
        layer += (2 * c * config.adapter_width + config.adapter_width + c) * (1 if mlp else 2)
    mixes = config.embedding_shortcut + config.value_residual
    rows = config.padded_vocab_size
    total = rows * c * (1 if config.tie_head else 2) + rows * config.head_bias
    total += norm * c * (2 if config.embedding_norm else 1) + config.n_layer * layer
    total += 2 * mixes * (config.n_layer - 1)
    used = set(config.schemes)
    total += config.context * c * ("learned" in used) + config.n_head * ("alibi_learned" in used)
    return total + 32 * config.n_head * ("relative" in used)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_answers_every_question(name):
    answers_every_question(shrunk(preset(name)))


@settings(max_examples=60)
@given(configurations())
def test_every_point_of_the_space_answers_every_question(config):
    answers_every_question(config)


@pytest.mark.parametrize("name", distinct_presets())
@pytest.mark.slow
def test_every_preset_compiles_to_the_same(name):
    compiles_to_the_same(shrunk(preset(name)), "inductor")


@settings(max_examples=15)
@given(configurations())
@pytest.mark.slow
def test_every_point_of_the_space_is_one_graph_that_computes_the_same(config):
    compiles_to_the_same(config, "aot_eager")


@pytest.mark.parametrize("pad", [1, 64])
def test_a_padded_vocabulary_changes_neither_loss_nor_logits(pad):
    plain, padded = (
        build(dataclasses.replace(shrunk(preset("star_3m")), head_bias=True, pad_vocab_to=p)) for p in (1, pad)
    )
    state = padded.state_dict()
    for name, value in plain.state_dict().items():
        state[name][: len(value)] = value
    padded.load_state_dict(state)
    tokens = torch.randint(0, 97, (2, N_TOKEN))
    torch.testing.assert_close(plain(tokens), padded(tokens), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(plain(tokens, tokens), padded(tokens, tokens), rtol=1e-14, atol=0)
    padded(tokens, tokens).backward()
    assert not padded.embedding.weight.grad[97:].any()
