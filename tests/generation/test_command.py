import io
import json
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
from gptstar.generation.beam import BeamSettings, beam_search
from gptstar.generation.command import SampleConfig, command_line, run, sample
from gptstar.generation.settings import SamplingSettings
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


def test_a_prompt_from_a_file_and_from_standard_input(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompt.txt").write_text("abc\nabd")
    expected = sample(SampleConfig(checkpoint=checkpoint, prompt="abc\nabd", max_new_tokens=9))
    capsys.readouterr()
    run(SampleConfig(checkpoint=checkpoint, prompt_file=str(tmp_path / "prompt.txt"), max_new_tokens=9))
    said = capsys.readouterr()
    assert said.out == expected + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\nabd")))
    run(SampleConfig(checkpoint=checkpoint, prompt_file="-", max_new_tokens=9))
    assert capsys.readouterr().out == expected + "\n"
    assert typed(said.err.strip()).prompt == "abc\nabd"  # what is echoed needs no file


def test_many_prompts_from_lines_to_lines(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"prompt": "abc"}\n{"prompt": "bcd ", "seed": 5}\n')
    config = SampleConfig(
        checkpoint=checkpoint, prompts=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.jsonl"), max_new_tokens=9
    )
    run(config)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    plain = replace(config, prompts=None, output=None)
    assert "abc" + lines[0]["text"] == sample(replace(plain, prompt="abc"))
    assert "bcd " + lines[1]["text"] == sample(replace(plain, prompt="bcd ", seed=5))
    with pytest.raises(UserError, match=r"out\.jsonl exists"):
        run(config)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(replace(config, prompts="~/in.jsonl", output="~/again.jsonl"))
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(prompt=""), "the prompt is empty"),
        (dict(prompt="a", prompt_file="b"), "prompt and prompt_file are given"),
        (dict(prompts="a"), "go together"),
        (dict(prompts="nowhere", output="out"), "is no file"),
        (dict(prompts=__file__, output="no/folder/out"), "no such folder"),
        (dict(prompts=__file__, output="/proc/out.jsonl"), r"output=/proc/out.jsonl cannot be written \(No such file"),
        (dict(prompt_file="nowhere"), r"cannot be read \(No such file or directory\): check the path"),
        (dict(interactive=True, prompts="a", output="b"), "leave prompts out"),
        (dict(prompt="a", temperature=-1), "temperature=-1"),
        (dict(prompt="a", top_p=0), "top_p=0"),
    ],
)
def test_sources_that_make_no_sense_are_refused_before_the_model_is_read(wrong, message):
    with pytest.raises(UserError, match=message):
        run(SampleConfig(checkpoint="nowhere", **wrong))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 3\)"):
        run(SampleConfig(checkpoint="nowhere", prompt_file=str(tmp_path / "prompt.txt")))


def test_a_search_finds_what_the_function_finds(checkpoint, capsys):
    asked = dict(checkpoint=checkpoint, prompt="abc", max_new_tokens=6, n_beam=3, length_penalty=0.5)
    model, tokenizer = gptstar.load(checkpoint)
    wish, beams = SamplingSettings(max_new_tokens=6, n=2, seed=0), BeamSettings(3, 0.5, "never")
    best, second = beam_search(model, tokenizer, "abc", wish, beams)
    text = sample(SampleConfig(**asked, n=2, early_stopping="never"))
    assert text == f"--- score={best.score:.4f}\nabc{best.text}\n\n--- score={second.score:.4f}\nabc{second.text}"
    echoed = capsys.readouterr().err
    assert "n_beam=3" in echoed and sample(typed(echoed)) == text
    run(SampleConfig(**asked))
    assert capsys.readouterr().out.startswith("abc")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_beam": 1}, "n_beam=1 searches nothing: 2 or more, or 0 to draw"),
        ({"n_beam": 2, "n": 3}, "n=3 sequences are more than n_beam=2"),
        ({"n_beam": 2, "temperature": 0.5}, "temperature=0.5 has no effect in beam search"),
        ({"n_beam": 2, "early_stopping": "soon"}, "early_stopping='soon' must be"),
        ({"early_stopping": True}, "early_stopping=True is of a beam search: add n_beam=4"),
        ({"length_penalty": 0.5}, "length_penalty=0.5 is of a beam search: add n_beam=4"),
        ({"n_beam": 2, "compile": True}, "n_beam=2 searches from one prompt: leave"),
        ({"n_beam": 2, "draft": "lookup"}, "n_beam=2 searches from one prompt: leave"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_the_model_is_read(wrong, message):
    with pytest.raises(UserError, match=message):
        run(SampleConfig(checkpoint="missing", prompt="a", **wrong))


def test_quantised_and_compiled(checkpoint):
    config = SampleConfig(checkpoint=checkpoint, prompt="abc", max_new_tokens=9, temperature=0)
    assert sample(replace(config, compile=True)) == sample(config)
    assert len(sample(replace(config, dtype="int8"))) > 3
