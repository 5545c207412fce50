"""Tasks of the harness as a model trains: the right numbers at the right steps, and nothing else changed by them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptstar.errors import UserError
from gptstar.evaluation.command import EvaluateConfig, evaluate
from gptstar.evaluation.tasks import LoadedTask
from gptstar.training import loop, trainer
from gptstar.training.config import TrainerConfig
from gptstar.training.downstream import load_downstream
from gptstar.training.metrics import TIMING_KEYS, read_metrics
from gptstar.training.schedules import ScheduleConfig
from support import tiny_model, write_tasks


@pytest.fixture
def config(train_config, tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    tasks = dict(eval_tasks=["piqa", "wikitext"], eval_tasks_every=3, eval_tasks_limit=3, eval_tasks_dir=str(folder))
    trainer = replace(train_config.trainer, sequence_length=32, **tasks)
    schedule = ScheduleConfig(name="constant")  # so that a shorter run is the beginning of a longer one
    return replace(train_config, model=tiny_model(context=96), trainer=trainer, schedule=schedule)


def lines(config):
    found = read_metrics(loop.train(config).run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in found]


def test_they_are_logged_at_their_steps_and_at_the_end_as_evaluate_says(config):
    found = [line for line in lines(config) if any("/" in key for key in line)]
    assert [line["step"] for line in found] == [3, 3, 6, 6, 8, 8]  # two tasks each time
    assert found[0].keys() == {"step", "tokens", "piqa/acc", "piqa/acc_norm"}
    again = evaluate(
        EvaluateConfig(config.run_dir, config.trainer.eval_tasks, config.trainer.eval_tasks_dir, limit=3, device="cpu")
    )
    expected = [{f"{row['task']}/{k}": v["value"] for k, v in row["metrics"].items()} for row in again.rows]
    for line, values in zip(found[-2:], expected, strict=True):
        assert {key: line[key] for key in values} == pytest.approx(values, rel=1e-9)
    assert len({line["wikitext/word_perplexity"] for line in found[1::2]}) == 3  # the model had moved


def test_the_run_is_the_one_without_them(config, tmp_path):
    measured = lines(config)
    plain = replace(config, run_dir=str(tmp_path / "plain"), trainer=replace(config.trainer, eval_tasks=[]))
    assert [line for line in measured if not any("/" in key for key in line)] == lines(plain)


def test_a_resumed_run_logs_each_once(config, tmp_path):
    whole = lines(config)
    run = str(tmp_path / "resumed")
    lines(replace(config, run_dir=run, trainer=replace(config.trainer, max_steps=4)))
    resumed = lines(replace(config, run_dir=run, resume=run))
    assert [line for line in resumed if line["step"] != 4] == [line for line in whole if line["step"] != 4]
    assert sum(any("/" in key for key in line) for line in resumed if line["step"] == 4) == 2  # the end, then


def test_what_an_interruption_kept_from_being_measured_is_measured_on_resuming(config, monkeypatch):
    whole = lines(config)
    real = trainer.measure_downstream

    def killed(model, tokenizer, task, limit):
        if task.name == "wikitext":
            raise KeyboardInterrupt
        return real(model, tokenizer, task, limit)

    run = f"{config.run_dir}-again"
    checkpointed = replace(config, run_dir=run, trainer=replace(config.trainer, checkpoint_every=3))
    monkeypatch.setattr(trainer, "measure_downstream", killed)
    with pytest.raises(KeyboardInterrupt):
        lines(checkpointed)
    monkeypatch.setattr(trainer, "measure_downstream", real)
    resumed = lines(replace(checkpointed, resume=run))
    tasks = [line for line in resumed if any("/" in key for key in line)]
    assert tasks == [line for line in whole if any("/" in key for key in line)]


def test_a_task_that_fails_leaves_the_run_and_the_other_task(config, monkeypatch):
    real = trainer.measure_downstream

    def failing(model, tokenizer, task, limit):
        if task.name == "piqa":
            raise ZeroDivisionError("no documents")
        return real(model, tokenizer, task, limit)

    monkeypatch.setattr(trainer, "measure_downstream", failing)
    found = lines(config)
    assert found[-1]["step"] == 8 and "final_loss" in found[-1]
    assert any("wikitext/word_perplexity" in line for line in found)
    log = (loop.Path(config.run_dir) / "train.log").read_text()
    assert "piqa failed: ZeroDivisionError: no documents" in log


def test_an_unknown_task_is_refused_before_anything_is_done(config, tmp_path):
    wrong = replace(config, trainer=replace(config.trainer, eval_tasks=["helaswag"]))
    with pytest.raises(UserError, match="hellaswag"):
        loop.train(wrong)
    assert not (tmp_path / "run").exists()


def test_none_are_asked_for_by_default():
    assert load_downstream(TrainerConfig(max_steps=1)) == []


def test_names_are_measured_once(config):
    twice = replace(config.trainer, eval_tasks=["piqa", "piqa"])
    found = load_downstream(twice)
    assert [task.name for task in found] == ["piqa"] and isinstance(found[0], LoadedTask)


@pytest.mark.parametrize("changes", [dict(eval_tasks_limit=0), dict(eval_tasks_every=-1)])
def test_impossible_values_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainerConfig(max_steps=1, **changes)
