import dataclasses

import pytest

from gptstar.configuration import config_directory, preset
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT


def test_widths_follow_from_d_model():
    config = ModelConfig(d_model=768, n_head=12)
    assert (config.head_size, config.d_feedforward, config.d_attention) == (64, 3072, 768)
    wider = dataclasses.replace(config, d_model=1536)
    assert (wider.head_size, wider.d_feedforward) == (128, 6144)


def test_wide_heads_need_no_divisibility():
    assert ModelConfig(d_model=100, n_head=3, d_head=40).d_attention == 120


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": 100, "n_head": 3}, ["model.d_model=100", "model.n_head=3", "d_head"]),
        ({"block": "seqential"}, ["model.block='seqential'", "parallel_shared"]),
        ({"position": "rope"}, ["model.position='rope'", "alibi"]),
        ({"layer_positions": ["alibi", "rope"]}, ["model.layer_positions='rope'", "rotary"]),
        ({"norm": "batchnorm"}, ["model.norm='batchnorm'", "rmsnorm"]),
        ({"n_head": 12, "n_kv_head": 5}, ["model.n_head=12", "model.n_kv_head=5"]),
        ({"windows": [0, -1]}, ["model.windows=[0, -1]"]),
        ({"rotary_fraction": 1.5}, ["model.rotary_fraction=1.5"]),
        ({"position": "rotary", "rotary_fraction": 0.01}, ["leaves no pair to turn"]),
        (
            {"block": "gmlp", "position": "none", "value_residual": True},
            ["model.value_residual=true", "'gmlp'", "amlp"],
        ),
        ({"activation": "tanh"}, ["model.activation='tanh'", "gelu_tanh"]),
        ({"n_layer": 0}, ["model.n_layer=0", "at least 1"]),
        ({"d_ff": -1}, ["model.d_ff=-1"]),
        ({"norm_eps": 0.0}, ["model.norm_eps=0.0"]),
    ],
)
def test_impossible_values_name_key_value_and_remedy(changes, words):
    with pytest.raises(ValueError) as error:
        GPT(ModelConfig(**changes))
    assert all(word in str(error.value) for word in words), error.value


def test_every_preset_is_named_like_its_file():
    names = [path.stem for path in (config_directory() / "model").glob("*.yaml")]
    assert {"gpt127", "gpt303", "gpt354", "gpt2_small", "gpt2_medium"} <= set(names)
    for name in names:
        assert preset(name).name == name


def test_unknown_preset_offers_the_known_ones():
    with pytest.raises(UserError, match=r"model=gpt128 is unknown.*gpt127"):
        preset("gpt128")
