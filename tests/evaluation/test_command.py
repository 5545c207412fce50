"""evaluate.py: what it writes, what it refuses before any work, and what a failing task leaves behind."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

import gptstar
from gptstar.configuration import run_door
from gptstar.errors import UserError
from gptstar.evaluation import command
from gptstar.evaluation.command import DEFAULT_TASKS, EvaluateConfig, describe, evaluate
from gptstar.evaluation.harness import GPTStarLM
from gptstar.evaluation.provenance import evaluation_folder
from gptstar.evaluation.results import read_results
from gptstar.pretrained.native import save_weights
from support import tiny_model, tiny_tokenizer, write_tasks


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), n_document=3)


@pytest.fixture
def checkpoint(tmp_path):
    """A run folder with one checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path / "run" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    model = gptstar.GPT(tiny_model(vocab_size=400, position="learned", init_std=0.3))
    save_weights(folder, model, tiny_tokenizer(), {"step": 7, "tokens": 123, "validation_loss": None})
    return tmp_path / "run"


def config(checkpoint, data_dir, /, **changes) -> EvaluateConfig:
    values = dict(checkpoint=str(checkpoint), data_dir=str(data_dir), device="cpu")
    return EvaluateConfig(**{**values, **changes})


def test_every_task_has_a_row_with_everything_to_cite_it(checkpoint, data_dir, capsys):
    result = evaluate(config(checkpoint, data_dir), Console(width=200))
    assert not result.failed
    rows = read_results(checkpoint / "evaluation" / "results.json")
    assert rows == json.loads(json.dumps(result.rows))
    assert [row["task"] for row in rows] == DEFAULT_TASKS
    assert [sorted(row["metrics"]) for row in rows] == [
        ["acc", "perplexity"],
        ["bits_per_byte", "byte_perplexity", "word_perplexity"],
        ["acc", "acc_norm"],
        ["acc", "acc_norm"],
        ["acc"],
    ]
    for row in rows:
        assert (row["documents"], row["of"], row["limit"], row["num_fewshot"]) == (3, 3, None, 0)
        assert (row["max_length"], row["dtype"], row["device"], row["harness"][:2]) == (32, "fp32", "cpu", "0.")
        assert row["seconds"] > 0 and row["requests_reused"] == 0 and row["training_tokens"] == 123
        assert row["checkpoint"].endswith("step-00000007") and row["parameters"] > 0 and row["hardware"]
        assert row["metrics"] and row["task_version"] is not None and len(row["files"]) == 1
    assert rows[0]["metrics"]["perplexity"]["higher_is_better"] is False
    assert rows[0]["metrics"]["perplexity"]["stderr"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [describe(row) for row in rows]
    assert printed[2].startswith("piqa: acc ") and " ± " in printed[2] and "(3 documents, " in printed[2]


def test_a_second_evaluation_reuses_what_is_finished_and_other_settings_do_not(checkpoint, data_dir):
    first = evaluate(config(checkpoint, data_dir, tasks=["piqa", "lambada_openai"])).rows
    again = evaluate(config(checkpoint, data_dir, tasks=["lambada_openai", "piqa"], limit=2)).rows
    assert [row["requests_reused"] for row in again] == [2, 4]
    shorter = evaluate(config(checkpoint, data_dir, tasks=["lambada_openai"], max_length=9)).rows
    assert shorter[0]["requests_reused"] == 0
    assert shorter[0]["fingerprint"] != first[0]["fingerprint"] == again[0]["fingerprint"]
    kept = read_results(checkpoint / "evaluation" / "results.json")
    assert [(row["task"], row["limit"], row["max_length"]) for row in kept] == [
        ("piqa", None, 32),
        ("lambada_openai", None, 32),
        ("lambada_openai", 2, 32),
        ("piqa", 2, 32),
        ("lambada_openai", None, 9),
    ]


def test_a_crash_in_one_task_leaves_the_others(checkpoint, data_dir, monkeypatch, capsys):
    def crash(self, requests, disable_tqdm=False):
        raise ZeroDivisionError("of its own making")

    monkeypatch.setattr(GPTStarLM, "loglikelihood_rolling", crash)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"checkpoint={checkpoint}", f"data_dir={data_dir}", "limit=2"])

    def main(settings: EvaluateConfig) -> None:
        result = evaluate(settings)
        assert [row["task"] for row in result.rows] == ["lambada_openai", "piqa", "hellaswag", "winogrande"]
        assert "ZeroDivisionError: of its own making (traceback in " in result.failed["wikitext"]

    GlobalHydra.instance().clear()
    run_door("evaluate", EvaluateConfig, main)
    GlobalHydra.instance().clear()
    folder = checkpoint / "evaluation"
    assert len(read_results(folder / "results.json")) == 4
    assert "ZeroDivisionError" in (folder / "wikitext.error.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["helaswag"]}, "task 'helaswag' is unknown .* did you mean hellaswag"),
        ({"tasks": ["arc_easy"]}, r"arc_easy\.jsonl does not exist"),
        ({"data_dir": "nowhere"}, "data_dir=nowhere is no folder"),
        ({"tasks": ["held_out"]}, "checkpoint=.*run: held_out needs a checkpoint inside a run folder"),
        ({"num_fewshot": 3}, r"num_fewshot=3 of task lambada_openai needs .*\.train\.jsonl"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(checkpoint, data_dir, changes, words, monkeypatch):
    monkeypatch.setattr(command, "load_for_evaluation", None)
    with pytest.raises(UserError, match=words):
        evaluate(config(checkpoint, data_dir, **changes))
    assert not (checkpoint / "evaluation").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_length": 33}, "max_length=33 is beyond the 32 tokens the model can read"),
        ({"batch_tokens": "lots"}, "batch_tokens='lots'"),
        ({"device": "cuda:77"}, "device=cuda:77 cannot be used here"),
        ({"checkpoint": "nowhere"}, "nowhere: no such run or checkpoint folder"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_measured(checkpoint, data_dir, changes, words):
    with pytest.raises(UserError, match=words):
        evaluate(config(checkpoint, data_dir, **{"tasks": ["piqa"], **changes}))
    assert not (checkpoint / "evaluation" / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"limit": 0}, "limit=0 must be above 0"),
        ({"num_fewshot": -1}, "num_fewshot=-1"),
        ({"dtype": "fp8"}, "dtype='fp8' is unknown"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EvaluateConfig(checkpoint="x", **changes)


def test_a_foreign_results_file_is_refused_at_once(checkpoint, data_dir, monkeypatch):
    monkeypatch.setattr(command, "load_for_evaluation", None)
    (checkpoint / "evaluation").mkdir()
    (checkpoint / "evaluation" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="move it away"):
        evaluate(config(checkpoint, data_dir))


def test_a_folder_that_cannot_be_made_is_refused_before_a_model_is_loaded(checkpoint, data_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(command, "load_for_evaluation", None)
        (checkpoint / "config.yaml").touch()
        for tasks in (["held_out"], ["piqa"]):
            with pytest.raises(UserError, match="output_dir=/proc/x cannot be made"):
                evaluate(config(checkpoint, data_dir, output_dir="/proc/x", tasks=tasks))
    with pytest.raises(UserError, match="no such run or checkpoint folder"):
        evaluate(config("nowhere", data_dir))
    assert not (tmp_path / "evaluations").exists()


def test_files_go_into_the_run_or_a_folder_of_the_models_name(checkpoint, data_dir, tmp_path):
    folders = [evaluation_folder(str(checkpoint / end)) for end in ("", "best", "checkpoints/step-00000007")]
    assert folders == [checkpoint / "evaluation"] * 3
    assert str(evaluation_folder("EleutherAI/gpt-neo-125m")) == "evaluations/gpt-neo-125m"
