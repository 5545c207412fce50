import shlex
from dataclasses import asdict, replace

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import gptstar
from gptstar.configuration import _literal_text
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.generation.command import SampleConfig, command_line, sample
from gptstar.pretrained.native import save_weights
from support import tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    folder.mkdir()
    tokenizer = train_tokenizer(["abc abd acd bcd " * 20], TokenizerConfig(vocab_size=270))
    save_weights(folder, gptstar.GPT(tiny_model(init_std=0.5)), tokenizer, {})
    return str(folder)


def typed(line: str) -> SampleConfig:
    """The configuration that a shell, the door and Hydra make of a command line."""
    arguments = [_literal_text(argument) for argument in shlex.split(line)[2:]]
    parsed = OverridesParser.create().parse_overrides(arguments)
    values = OmegaConf.create({override.get_key_element(): override.value() for override in parsed})
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SampleConfig), values))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(TEXT, st.lists(TEXT, max_size=3), st.none() | st.floats(0.1, 1), st.integers(1, 3))
def test_the_command_that_is_echoed_means_the_same_settings(prompt, stop, top_p, n):
    config = SampleConfig(checkpoint="a b/c", prompt=prompt, stop=stop, top_p=top_p, n=n, forbidden_tokens=[1, 2])
    assert asdict(typed(command_line(config))) == asdict(config)


@pytest.mark.parametrize("prompt", ["null", "'quoted'", '"', "${x}", "it's \\", "a=b, [c]", ""])
def test_prompts_that_mean_something_to_hydra_or_a_shell(prompt):
    assert typed(command_line(SampleConfig(checkpoint="c", prompt=prompt))).prompt == prompt


def test_the_echoed_command_makes_the_sample_again(checkpoint, capsys):
    config = SampleConfig(checkpoint=checkpoint, prompt="abc", max_new_tokens=12, temperature=1.5, seed=None, n=2)
    text = sample(config)
    echoed = capsys.readouterr().err
    assert "seed=None" not in echoed and sample(typed(echoed)) == text
    assert capsys.readouterr().err == echoed


def test_each_of_several_sequences_is_under_its_seed(checkpoint):
    config = SampleConfig(checkpoint=checkpoint, prompt="abc", max_new_tokens=12, temperature=1.5, n=3)
    parts = sample(config).split("\n\n--- seed=")
    assert len(parts) == 3
    for part in parts:
        seed, _, text = part.removeprefix("--- seed=").partition("\n")
        assert sample(replace(config, n=1, seed=int(seed))) == text


def test_log_probabilities_are_a_line_a_token(checkpoint):
    config = SampleConfig(checkpoint=checkpoint, prompt="abc", max_new_tokens=3, logprobs=2)
    text, *lines = sample(config).split("\n")[-4:]
    assert text == sample(replace(config, logprobs=None)).split("\n")[-1]
    assert len(lines) == 3 and all(len(line.split()) >= 6 and float(line.split()[-1]) < 0 for line in lines)


def test_bad_settings_are_refused_before_the_model_is_read():
    with pytest.raises(UserError, match="top_k=0"):
        sample(SampleConfig(checkpoint="nowhere", top_k=0))
