"""muP against its table: what starts smaller, what is scaled, and that nothing changes at the base width."""

import dataclasses

import pytest
import torch
from rich.console import Console

import gptstar
from gptstar.describe import DescribeConfig, describe
from gptstar.model.config import ModelConfig
from gptstar.model.describe import components
from gptstar.model.mup import channel_readers
from gptstar.model.transformer import GPT
from gptstar.pretrained.star import STAR
from gptstar.pretrained.transformers_folder import family_of
from support import tiny_model, tiny_tokenizer

READERS = ("query", "key", "value", "output", "gate", "up", "down")


def wide(**changes) -> ModelConfig:
    values = dict(d_model=128, n_head=4, d_head=32, d_ff=256, position="learned", head_bias=True, init_std=0.1)
    return tiny_model(**{**values, "mup_base_width": 32, **changes})


def built(config: ModelConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


@pytest.mark.parametrize("block", ["sequential", "parallel_shared", "gmlp"])
def test_matrices_that_read_channels_start_smaller_and_nothing_else_does(block):
    config = wide(block=block, tie_head=False, activation="swiglu", adapter_width=8)
    plain = built(dataclasses.replace(config, mup_base_width=0)).state_dict()
    said = {row.name: row.init for row in components(config, 8)}
    for name, value in built(config).state_dict().items():
        module = name.removesuffix(".weight")
        reads = name.endswith("weight") and module.rpartition(".")[2] in READERS
        reads = reads and not ("adapter" in name and module.endswith("up"))
        torch.testing.assert_close(value, plain[name] * (0.5 if reads else 1.0), msg=name)
        if reads:
            std = float(said[".".join("*" if part.isdigit() else part for part in module.split("."))])
            assert value.std().item() == pytest.approx(std, rel=0.05), name


def test_the_base_width_is_bit_identical_to_muP_off():
    tokens = torch.randint(0, 300, (2, 16))
    off, on = built(wide(mup_base_width=0)), built(wide(mup_base_width=128, mup_base_head=32))
    assert all(torch.equal(a, b) for a, b in zip(off.parameters(), on.parameters(), strict=True))
    assert torch.equal(off(tokens), on(tokens)) and torch.equal(off(tokens, tokens), on(tokens, tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_divided_by_the_growth_and_the_bias_is_not(tied):
    config = wide(tie_head=tied)
    model, tokens = built(config), torch.randint(0, 300, (2, 16))
    plain = GPT(dataclasses.replace(config, mup_base_width=0))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), plain(tokens) / 4)
    with torch.no_grad():
        for each in (model, plain):
            each.head_bias.fill_(2.0)
    torch.testing.assert_close(model(tokens) - 2, (plain(tokens) - 2) / 4)


def test_logits_at_the_start_fall_with_the_root_of_the_width():
    tokens = torch.randint(0, 300, (4, 32))
    sizes = []
    for growth in (1, 4, 16):
        shape = wide(d_model=32 * growth, n_head=growth, d_ff=64 * growth)
        with torch.no_grad():
            sizes.append(built(shape)(tokens).std().item())
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.1) and sizes[1] / sizes[2] == pytest.approx(2, rel=0.1)


def test_heads_that_grow_are_compared_more_softly():
    assert wide().attention_scale == 32**-0.5
    assert wide(mup_base_head=8).attention_scale == pytest.approx(8**0.5 / 32)
    tokens = torch.randint(0, 300, (2, 16))
    grown = built(wide(mup_base_head=8))
    by_hand = built(wide(score_scale=8**0.5 / 32))
    torch.testing.assert_close(grown(tokens), by_hand(tokens))
    assert not torch.allclose(grown(tokens), built(wide())(tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mup_base_width": -1}, "model.mup_base_width=-1"),
        ({"mup_base_head": -1}, "model.mup_base_head=-1"),
        ({"mup_base_width": 0, "mup_base_head": 8}, "set model.mup_base_width too"),
        ({"mup_base_head": 8, "score_scale": 1.0}, "both say"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        wide(**changes)


def test_every_reader_is_found_once():
    model = built(wide(block="sequential", adapter_width=8))
    names = {id(p): n for n, p in model.named_parameters()}
    found = [names[id(weight)] for weight in channel_readers(model)]
    assert len(found) == len(set(found)) == model.config.n_layer * (4 + 2)  # of each layer two adapters' first matrices


def test_an_export_gives_the_same_logits(tmp_path):
    """Transformers' own classes do not divide logits: at another width than the base's it takes our code."""
    gpt2 = wide(block="sequential", head_bias=False, mup_base_width=0, context=64, vocab_size=400)
    assert family_of(dataclasses.replace(gpt2, mup_base_width=128)).model_type == family_of(gpt2).model_type == "gpt2"
    shape = dataclasses.replace(gpt2, mup_base_width=32)
    assert family_of(shape) is STAR
    transformers = pytest.importorskip("transformers")
    model, tokens = built(shape).eval(), torch.randint(0, 400, (2, 9))
    gptstar.export(model, tiny_tokenizer(), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(theirs(tokens).logits, expected)
        torch.testing.assert_close(gptstar.load(tmp_path / "out")[0](tokens), expected, rtol=0, atol=0)


def test_the_explanation_says_it():
    console = Console(record=True, width=200)
    describe(DescribeConfig(model=wide()), console)
    assert "4 times as wide" in (text := console.export_text()) and "logits / 4" in text
