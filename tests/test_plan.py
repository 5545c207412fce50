"""train.py plan=true, its command line and what is measured beside it."""

import json
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from gptstar.lab.planning.hardware import Hardware
from gptstar.lab.planning.plan import plan
from gptstar.plan import _memory, beside, load_hardware, plan_or_train
from gptstar.training import loop
from gptstar.training.config import TrainConfig
from gptstar.training.loop import train


@pytest.fixture
def door(monkeypatch, tmp_path):
    """Runs a command line of train.py that has plan=... in this process, in an empty folder; nothing may be trained."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    trained: list[TrainConfig] = []

    def call(*arguments: str) -> list[TrainConfig]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        plan_or_train(trained.append)
        return trained

    yield call
    GlobalHydra.instance().clear()


def test_a_recipe_is_planned_and_nothing_is_left_behind(door, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Trainer", None)
    monkeypatch.setattr(loop, "prepare", None)
    assert door("plan=true", "experiment=gpt127", "hardware=a5000x4", "hardware.price=1") == []
    said = capsys.readouterr().out
    assert "gpt127 on a5000x4 (4 devices)" in said and "127,030,272" in said and "fits" in said
    assert list((tmp_path / "here").iterdir()) == []


def test_output_is_a_folder_for_the_plan(door, tmp_path, capsys):
    door("plan=true", "hardware=3090", f"output={tmp_path}/made/it", "mfu=0.5")
    assert (tmp_path / "made/it/plan.md").read_text().startswith("# star_3m on 3090 (1 device)")
    assert json.loads((tmp_path / "made/it/plan.json").read_text())["mfu"] == pytest.approx(0.5)


def test_plan_false_trains(door):
    (config,) = door("plan=false", "trainer.max_steps=7", "schedule.warmup_steps=2")
    assert type(config) is TrainConfig and config.trainer.max_steps == 7


def test_what_was_measured_stands_beside(door, train_config, capsys):
    run = train(train_config).run
    capsys.readouterr()
    door("plan=true", f"resume={run}", "hardware=a5000")
    said = capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["tokens_per_second"] for line in lines if "seconds" in line and line["step"] > 3)
    assert "measured / planned" in said and f"{rates[len(rates) // 2]:,.0f}" in said
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit):
        door("plan=true", f"resume={run}", "hardware=a5000")
    assert "has no steps in metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan=maybe"], "plan=maybe is neither plan=true nor plan=false"),
        (["plan=true", "-m", "trainer.seed=0,1"], "plan=true plans one run: leave -m out"),
        (["plan=true", "hardware=a6000"], "hardware=a6000 is unknown: choose one of 3090, 3090x4"),
        (["plan=true", "hardware=a5000", "hardware.pric=2"], "did you mean hardware.price?"),
        (["plan=true", "hardware=t4", "trainer.precision=bf16"], "hardware=t4 has no peak for it"),
        (["plan=true", "hardware=a5000", "trainer.max_stepz=2"], "did you mean trainer.max_steps?"),
        (["plan=true", "hardware.bandwidth=-1", "+hardware.peaks.fp32=1e9"], "hardware.bandwidth=-1 must be above 0"),
        (["plan=true", "hardware=a5000", "hardware.price=-1"], "hardware.price=-1 must be above 0"),
        (["plan=true", "hardware=a5000", "hardware.efficiency.matmul=3"], "hardware.efficiency.matmul=3.0 must lie in"),
    ],
)
def test_a_mistake_is_one_line(door, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        door(*arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and words in error


def test_measured_and_planned_are_of_the_same_kind(train_config):
    """An MFU of the same peak, not the run's own; on a GPU no libraries, which its measured memory leaves out."""
    on_gpu = plan(train_config, load_hardware("a5000"))
    on_cpu = plan(
        train_config, Hardware(device="cpu", peaks={"fp32": 1e11}, memory_gib=8, bandwidth=1e10, functions=1e9)
    )
    line = {"seconds": 1.0, "tokens": 640, "tokens_per_second": 2 * on_gpu.tokens_per_second, "mfu": 0.9}
    for planned in (on_gpu, on_cpu):
        line["tokens_per_second"] = 2 * planned.tokens_per_second
        libraries = planned.memory["libraries"] if planned is on_gpu else 0
        line["memory_gib"] = (planned.needed - libraries) / 2**30
        rows = {row[0]: row for row in beside(planned, [line], "RUN").rows}
        assert rows["MFU"][3] == "2.00" and rows["memory of a step, GiB"][3] == "1.00"


def test_what_does_not_fit_is_printed_and_ends_with_1(door, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        door("plan=true", "experiment=gpt127", "hardware=a5000", "trainer.microbatch=512", f"output={tmp_path}/plan")
    assert exit_.value.code == 1 and "does not fit" in capsys.readouterr().out
    assert not json.loads((tmp_path / "plan/plan.json").read_text())["fits"]


def test_memory_is_that_of_steps_and_not_of_validations():
    lines = [{"memory_gib": 1.0}, {"memory_gib": 1.5}, {"validation_loss": 3.0}, {"memory_gib": 4.0}]
    assert _memory(lines) == 1.5 and _memory(lines[:2]) == 1.5 and _memory([]) == 0.0
