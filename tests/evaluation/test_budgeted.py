"""Evaluation under a memory budget finds what it finds without one."""

from __future__ import annotations

import pytest
import torch

import gptstar
from gptstar.errors import UserError
from gptstar.evaluation.checkpoint import load_for_evaluation
from gptstar.evaluation.command import EvaluateConfig, evaluate
from gptstar.evaluation.harness import GPTStarLM
from gptstar.evaluation.perplexity import PerplexityConfig, perplexity
from gptstar.evaluation.store import fingerprint
from gptstar.offload.layers import find_layers
from gptstar.offload.load import Limits
from gptstar.offload.plan import Room, least_bytes
from gptstar.offload.stream import layers_of
from gptstar.pretrained.native import save_weights
from support import tiny_model, tiny_tokenizer, write_tasks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = gptstar.GPT(tiny_model(vocab_size=400, n_layer=4, init_std=0.3, context=128))
    save_weights(folder, model.half(), tiny_tokenizer(), {})
    return folder


def least(checkpoint) -> str:
    """The smallest budget."""
    found = find_layers(checkpoint)
    return str(least_bytes(found, torch.float32, Room(512, 256, 256, longest=128)) + 1000)


def test_scores_are_those_of_the_whole_model(checkpoint, tmp_path, exact_budgets, capsys):
    data_dir = write_tasks(tmp_path / "tasks", n_document=6)
    asked = dict(checkpoint=str(checkpoint), data_dir=str(data_dir), device="cpu", batch_tokens="256")
    whole = evaluate(EvaluateConfig(**asked, output_dir=str(tmp_path / "whole")))
    asked |= dict(memory_budget=least(checkpoint), output_dir=str(tmp_path / "part"))
    part = evaluate(EvaluateConfig(**asked))
    assert "  disk            4 " in capsys.readouterr().err
    assert not part.failed and len(part.rows) == len(whole.rows) == 5
    for a, b in zip(whole.rows, part.rows, strict=True):
        assert {**a["metrics"]}.keys() == b["metrics"].keys() and a["task"] == b["task"]
        for name, value in a["metrics"].items():
            assert b["metrics"][name]["value"] == pytest.approx(value["value"], rel=1e-4)


def test_perplexity_is_that_of_the_whole_model(checkpoint, tmp_path, exact_budgets, capsys):
    (tmp_path / "text.txt").write_text("Some words, again some words.\n" * 20)
    asked = dict(checkpoints=[str(checkpoint)], text=[str(tmp_path / "text.txt")], device="cpu", batch_tokens="256")
    asked |= dict(contexts=[64, 128])
    whole = perplexity(PerplexityConfig(**asked, output_dir=str(tmp_path / "whole"))).rows
    asked |= dict(memory_budget=least(checkpoint), output_dir=str(tmp_path / "part"))
    part = perplexity(PerplexityConfig(**asked)).rows
    assert "  disk            4 " in capsys.readouterr().err
    assert [row["max_length"] for row in part] == [64, 128]
    for a, b in zip(whole, part, strict=True):
        assert b["metrics"]["loss"]["value"] == pytest.approx(a["metrics"]["loss"]["value"], rel=1e-4)


def test_the_harness_takes_a_budget(checkpoint, exact_budgets, capsys):
    arguments = f"checkpoint={checkpoint},batch_tokens=256,memory_budget={least(checkpoint)}"
    lm = GPTStarLM.create_from_arg_string(arguments, {"device": "cpu"})
    assert layers_of(lm.model).streamed and "  disk            4 " in capsys.readouterr().err
    with pytest.raises(UserError, match="memory_budget=much must be a number of bytes"):
        GPTStarLM.create_from_arg_string(f"checkpoint={checkpoint},memory_budget=much", {"device": "cpu"})


def test_a_fingerprint_covers_the_files(checkpoint, exact_budgets):
    model, tokenizer = load_for_evaluation(checkpoint, "cpu", "auto", Limits(least(checkpoint)), "256")
    assert layers_of(model).streamed
    before = fingerprint(model, tokenizer)
    assert before == fingerprint(model, tokenizer)
    (checkpoint / "model.safetensors").touch()
    assert fingerprint(model, tokenizer) != before
