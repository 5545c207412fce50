"""experiment=search from the command line: mistakes are one line before any work; a real search of a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptstar.lab.sweeps import trials
from gptstar.lab.sweeps.space import Between, Choice

SMALL = (
    "optimizer=adamw",
    "optimizer.weight_decay=0.1",
    "model.activation=gelu",
    "model.qk_norm=false",
)  # a space of one
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def search(monkeypatch, door):
    """The Search that a command line asks for, as it would be run."""

    def call(*arguments: str) -> trials.Search:
        found: list[trials.Search] = []

        def run(self, finished, say):
            found.append(self)
            (self.folder / "search.md").write_text("# Search")
            return True

        monkeypatch.setattr(trials.Search, "run", run)
        door("-m", "experiment=search", *arguments, main=lambda config: pytest.fail("a run of its own"))
        return found[0]

    return call


def test_the_space_of_the_configuration(search):
    made = search()
    assert made.space["optimizer"] == Choice(("adamw", "muon"))
    assert made.space["optimizer.lr"] == Between(1e-3, 3e-2, True, False)
    assert made.space["model.qk_norm"] == Choice(("true", "false"))
    assert made.default is not None and made.default["optimizer"] == "adamw" and made.default["optimizer.lr"] == 3e-3
    assert made.budget == 540 * 8 * 256 and made.first_rung == 60 * 8 * 256
    assert str(made.folder) == "studies/search" and made.command[1:] == ["train.py", "experiment=search"]


def test_the_command_line_changes_the_space_and_all_trials(search):
    made = search(
        *("run_dir=here", "optimizer=lion", "model.qk_norm=true", "trainer.seed=3", "trainer.clip=interval(0.5,2.0)"),
        *("model.n_layer=int(interval(1,4))", "schedule.warmup_steps=10,20", "hydra.sweeper.trials=5"),
    )
    assert "optimizer" not in made.space and "model.qk_norm" not in made.space
    assert made.space["trainer.clip"] == Between(0.5, 2.0, False, False)
    assert made.space["model.n_layer"] == Between(1, 4, False, True)
    assert made.space["schedule.warmup_steps"] == Choice(("10", "20"))
    assert made.command[2:] == ["experiment=search", "optimizer=lion", "model.qk_norm=true", "trainer.seed=3"]
    assert made.trials == 5 and str(made.folder) == "here"
    assert made.default is not None and made.default["model.n_layer"] == 2


def test_a_default_outside_of_the_space_is_not_tried(search):
    assert search(*SMALL, "optimizer.lr=interval(0.1,0.2)").default is None


MISTAKES = [
    (["optimizer.lrr=1,2"], ["optimizer.lrr is not a setting", "optimizer.lr"]),
    (["model.activation=gelu,relu3"], ["model.activation='relu3' is unknown", "relu_squared"]),
    (["optimizer=adamw,adam"], ["optimizer=adam is unknown", "muon"]),
    (["optimizer.lr=interval(2,1)"], ["optimizer.lr=interval(2,1)", "LOW,HIGH"]),
    (["optimizer.lr=tag(log,interval(0,1))"], ["above 0"]),
    (["trainer.max_steps=100,200"], ["trainer.max_steps would give trials different budgets"]),
    (["trainer.batch_size=4,8"], ["trainer.batch_size", "set trainer.max_tokens=N"]),
    (["trainer.eval_every=100"], ["trainer.eval_every=100", "set trainer.eval_every=60"]),
    (["hydra.sweeper.trials=0"], ["hydra.sweeper.trials=0 must be"]),
    (["hydra.sweeper.reduction=1"], ["hydra.sweeper.reduction=1 must be a whole number from 2 on"]),
    (["hydra.sweeper.timeout=-1"], ["hydra.sweeper.timeout=-1"]),
    (["hydra.sweeper.trialz=3"], ["trialz"]),
    (["model.qk_norm=true,true"], ["has an option twice"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(search, capsys, tmp_path, arguments, words):
    with pytest.raises(SystemExit) as ending:
        search(*SMALL, *arguments)
    said = capsys.readouterr().err.strip().splitlines()
    assert ending.value.code == 2 and len(said) == 1 and all(word in said[0] for word in words), said
    assert not list(tmp_path.iterdir())


def test_batches_of_several_sizes_need_a_budget_in_tokens(search):
    limits = ("trainer.max_steps=null", "trainer.max_tokens=1105920", "trainer.eval_every=20")
    assert search(*SMALL, "trainer.batch_size=4,8", *limits).budget == 1105920


def test_a_folder_is_that_of_one_search(search, capsys, tmp_path):
    search("run_dir=a", *SMALL)
    search("run_dir=a", *SMALL, "hydra.sweeper.trials=99", "hydra.sweeper.timeout=60")  # more of the same
    with pytest.raises(SystemExit):
        search("run_dir=a", *SMALL, "optimizer.lr=interval(0.1,0.2)")
    assert "run_dir=a holds a search with another space" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(SystemExit):
        search("run_dir=b", *SMALL)
    assert "run_dir=b holds something else" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_of_a_tiny_model_is_killed_and_goes_on(tmp_path, corpus_dir):
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", "experiment=search", f"run_dir={tmp_path / 'study'}"),
        *("data=text_files", f"data.paths=[{corpus_dir}/*.txt]", f"data.cache_dir={tmp_path / 'cache'}"),
        *("model.d_model=32", "model.n_head=1", "model.d_head=32", "model.n_layer=1", "model.d_ff=64"),
        *("model.context=32", "tokenizer.vocab_size=300", "data.validation_fraction=0.2", "trainer.max_steps=18"),
        *("trainer.eval_every=2", "trainer.eval_tokens=512", "schedule.warmup_steps=2", "hydra.sweeper.trials=3"),
        *("trainer.device=cpu", "trainer.peak_flops=1e11"),
    ]
    study = tmp_path / "study"
    first = subprocess.Popen(command)
    deadline = time.monotonic() + 200
    while not (study / "trial-001").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=250)
    assert ended.returncode == 0, ended.stderr
    assert "trial-000 (" not in ended.stdout  # done before the kill
    found = json.loads((study / "search.json").read_text())
    assert sorted(each["number"] for each in found["trials"]) == [0, 1, 2]
    best = next(each for each in found["trials"] if each["number"] == found["best"])
    lines = [json.loads(line) for line in (study / best["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert best["final"] == lines[-1]["final_loss"]
    for each in found["trials"]:
        assert each["state"] in ("complete", "pruned")
