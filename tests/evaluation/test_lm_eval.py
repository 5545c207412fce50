"""The harness's own command line finds our models, and still its own."""

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from lm_eval.api.registry import get_model, model_registry

import gptstar
import gptstar.evaluation.lm_eval as command_line
from gptstar.errors import EXIT_INTERRUPTED, UserError
from gptstar.evaluation.harness import GPTStarLM
from gptstar.pretrained.native import save_weights
from support import tiny_model, tiny_tokenizer


def test_both_are_registered():
    assert get_model("gptstar") is GPTStarLM and "hf" in model_registry


def test_model_args_build_a_model_and_the_harness_defaults_are_no_obstacle(tmp_path):
    save_weights(tmp_path, gptstar.GPT(tiny_model(vocab_size=400)), tiny_tokenizer(), {})
    defaults = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    arguments = f"checkpoint={tmp_path},max_length=24,batch_tokens=99,dtype=bfloat16"
    lm = get_model("gptstar").create_from_arg_string(arguments, defaults)
    assert (lm.max_length, lm.scorer.budget, lm.model.dtype) == (24, 99, torch.bfloat16)
    assert lm.get_model_info()["max_length"] == 24
    assert lm.tok_encode("abc") == tiny_tokenizer().encode("abc")


@pytest.mark.parametrize("arguments", [{}, {"checkpoint": "x", "peft": "y"}])
def test_wrong_model_args_are_named(arguments):
    with pytest.raises(UserError, match=r"--model_args: (checkpoint is not set|peft is unknown)"):
        GPTStarLM.create_from_arg_obj(arguments, {"device": "cpu"})


def test_a_length_that_is_no_number_is_named(tmp_path):
    with pytest.raises(UserError, match="--model_args: max_length=1k must be a whole number of tokens"):
        GPTStarLM.create_from_arg_string(f"checkpoint={tmp_path},max_length=1k", {"device": "cpu"})


@pytest.mark.parametrize(
    ("arguments", "device"),
    [({}, "cuda"), ({}, "cuda:1"), ({"device": "cuda:0"}, None), ({"device": "cuda"}, "cuda:0")],
)
def test_a_gpu_that_somebody_asks_for_must_be_there(monkeypatch, arguments, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device=cuda(:\d)? cannot be used here"):
        GPTStarLM.create_from_arg_obj({"checkpoint": "x", **arguments}, {"device": device})


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionError("Couldn't reach 'baber/piqa'\non the Hub"), "Couldn't reach 'baber/piqa' on the Hub"),
        (OfflineModeIsEnabled("offline"), "it is not in the hub's cache, and the hub is not asked"),
        (UserError("a mistake"), "a mistake"),
    ],
)
def test_what_cannot_be_had_is_one_line(monkeypatch, capsys, error, why):
    done = []

    def evaluate():
        done.append("evaluated")
        raise error

    monkeypatch.setattr(command_line, "offline_without_network", lambda: done.append("asked"))
    monkeypatch.setattr(command_line, "cli_evaluate", evaluate)
    assert command_line.main() == 2 and done == ["asked", "evaluated"]
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and why in said
    assert ("evaluate.py with data_dir=DIR" in said) == isinstance(error, ConnectionError)


def test_what_goes_well_and_what_is_interrupted_has_a_status(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "offline_without_network", lambda: None)
    for evaluate, status in ((lambda: None, 0), (interrupted, EXIT_INTERRUPTED)):
        monkeypatch.setattr(command_line, "cli_evaluate", evaluate)
        assert command_line.main() == status
