"""Studies: what runs, in which order, what is refused before anything does, and that a killed one goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
import yaml
from hydra.core.utils import JobReturn, JobStatus

from gptstar import ideas
from gptstar.errors import UserError
from gptstar.lab.sweeps.launcher import ProcessLauncher
from gptstar.lab.sweeps.sweeper import finished
from gptstar.training.loop import train
from gptstar.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
STUDY = (
    "hydra/sweeper=study",
    "hydra/launcher=local",
    "++hydra.sweeper.variants={plain: {why: as it is, set: []}, wide: {why: wider, set: ['model.d_ff=900']}}",
    "hydra.sweeper.baseline=plain",
    "hydra.sweeper.seeds=[3,4]",
)


@pytest.fixture
def launched(monkeypatch):
    """The jobs that would be run; all of them succeed."""
    seen: list[list[str]] = []

    def launch(self, job_overrides, initial_job_idx):
        seen.extend(list(overrides) for overrides in job_overrides)
        results = [JobReturn() for _ in job_overrides]
        for result in results:
            result.status = JobStatus.COMPLETED
        return results

    monkeypatch.setattr(ProcessLauncher, "launch", launch)
    return seen


def test_all_variants_of_a_seed_run_before_the_next_seed(door, launched, capsys):
    door("-m", *STUDY, "run_dir=there", "trainer.max_steps=30")
    names = [dict(o.split("=", 1) for o in job)["hydra.sweep.subdir"] for job in launched]
    assert names == ["plain-3", "wide-3", "wide-4", "plain-4"]
    assert launched[1] == [
        *("trainer.max_steps=30", "logger.group=there", "model.d_ff=900", "trainer.seed=3", "resume=auto"),
        *("run_dir=there", "hydra.sweep.subdir=wide-3"),
    ]
    said = capsys.readouterr().out
    assert "2 variants x 2 seeds: 4 runs in there" in said and "python compare.py there" in said
    about = yaml.safe_load(Path("there/study.yaml").read_text())
    assert about["baseline"] == "plain" and about["variants"]["wide"]["why"] == "wider"
    assert about["runs"]["wide-4"] == {"variant": "wide", "seed": 4}
    (command,) = about["commands"]
    assert command.startswith("python train.py -m") and "trainer.max_steps=30" in command
    assert "'hydra.sweeper.seeds=[3,4]'" in command


def test_some_of_the_variants_leave_the_others_in_the_description(door, launched):
    door("-m", *STUDY, "run_dir=there")
    door("-m", *STUDY, "run_dir=there", "hydra.sweeper.only=[wide]", "hydra.sweeper.seeds=[9]")
    assert [job[-1] for job in launched[4:]] == ["hydra.sweep.subdir=wide-9"]
    runs = yaml.safe_load(Path("there/study.yaml").read_text())["runs"]
    assert list(runs) == ["plain-3", "wide-3", "wide-4", "plain-4", "wide-9"]
    assert len(yaml.safe_load(Path("there/study.yaml").read_text())["commands"]) == 2


MISTAKES = [
    (["hydra.sweeper.only=[broad]"], "hydra.sweeper.only=broad is no variant: choose some of plain, wide"),
    (["hydra.sweeper.baseline=broad"], "hydra.sweeper.baseline=broad is no variant"),
    (["hydra.sweeper.seeds=[1,1]"], "has a seed twice"),
    (["hydra.sweeper.seeds=[]"], "a study needs"),
    (["model.d_ff=800"], "model.d_ff=800 cannot be set for the whole study: variant wide sets it"),
    (["trainer.seed=5"], "trainer.seed=5 cannot be set for the whole study: hydra.sweeper.seeds does"),
    (["trainer.clip=0.5,1"], "trainer.clip=0.5,1: a study has its variants in its experiment"),
    (["++hydra.sweeper.variants={a@b: {set: []}}", "hydra.sweeper.baseline=a@b"], "'a@b' becomes a folder's name"),
    (["++hydra.sweeper.variants={a: [x]}", "hydra.sweeper.baseline=a"], "variant a must be {why: TEXT, set:"),
    (["schedule.warmup_steps=5000"], "variant plain: schedule.warmup_steps=5000 is longer than the run"),
    (["hydra.sweeper.seeds=3"], "hydra.sweeper.seeds=3 must be of the form [A, B]"),
    (["hydra.sweeper.seeds=[x]"], "must be whole numbers"),
    (["++hydra.sweeper.variants={a: foo}", "hydra.sweeper.baseline=a"], "variant a must be {why: TEXT, set:"),
    (["hydra.sweeper.equal_parameters=0.01", "hydra.sweeper.only=[wide]"], "variant wide has 2,500,360 parameters"),
    (["hydra.sweeper.equal_parameters=0.01"], "variant wide has 2,500,360 parameters and plain 2,578,336"),
    (["++hydra.sweeper.variants={a: {set: ['model.n_heads=3']}}", "hydra.sweeper.baseline=a"], "n_heads"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=[" ".join(c) for c, _ in MISTAKES])
def test_a_study_that_cannot_be_run_is_refused_before_anything_runs(door, launched, capsys, changes, words):
    changed = [change.partition("=")[0] for change in changes]
    study = [override for override in STUDY if override.partition("=")[0] not in changed]
    with pytest.raises(SystemExit) as exit_:
        door("-m", *study, *changes, "run_dir=there")
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(lines) == 1 and words in lines[0]
    assert not launched


def test_a_run_is_finished_after_all_its_steps_and_belongs_to_its_settings(train_config):
    run = Path(train_config.run_dir)
    assert not finished(run, train_config)
    train(train_config)
    assert finished(run, train_config)
    (run / "metrics.jsonl").write_text("\n".join((run / "metrics.jsonl").read_text().splitlines()[:-1]) + "\n")
    assert not finished(run, train_config)
    train_config.optimizer.lr = 1e-5
    with pytest.raises(UserError, match=r"holds a run with other settings \(optimizer.lr 0.0006 -> 1e-05\)"):
        finished(run, train_config)


IDEA = """
from gptstar.model.block import SequentialBlock
from gptstar.model.choices import BLOCKS
from gptstar.model.own import add

@add(BLOCKS, "mine", power=1.0)
class Mine(SequentialBlock):
    pass
"""


@pytest.fixture
def idea(no_ideas, tmp_path):
    (tmp_path / "mine.py").write_text(IDEA)
    return tmp_path / "mine.py"


def test_variants_may_set_what_an_idea_reads_and_a_folder_of_configurations_is_told(door, launched, idea, tmp_path):
    (tmp_path / "mine").mkdir()
    own = "'model.block=mine', 'model.position=learned', 'model.own.power=3'"
    variants = f"{{plain: {{set: []}}, mine: {{set: [{own}]}}}}"
    study = [f"++hydra.sweeper.variants={variants}" if "variants=" in word else word for word in STUDY]
    door("--config-dir", str(tmp_path / "mine"), "-m", *study, f"ideas=[{idea}]", "run_dir=there")
    assert "++model.own.power=3" in launched[1]
    (command,) = yaml.safe_load(Path("there/study.yaml").read_text())["commands"]
    assert command.startswith(f"python train.py --config-dir {tmp_path}/mine -m ")


def test_a_run_of_an_idea_is_not_finished_for_another_text_of_it(train_config, idea):
    ideas.use([idea])
    train_config.ideas = [str(idea)]
    run = Path(train_config.run_dir)
    train(train_config)
    assert finished(run, train_config)
    idea.write_text(IDEA + "# better\n")
    with pytest.raises(UserError, match=r"holds a run with other settings \(another text of mine\.py\)"):
        finished(run, train_config)


def _command(corpus_dir, cache_dir, folder: Path) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "train.py"), "-m", f"run_dir={folder}", *STUDY[:2]),
        *("++hydra.sweeper.variants={a: {set: []}, b: {set: ['model.d_ff=40']}}", "hydra.sweeper.baseline=a"),
        *("hydra.sweeper.seeds=[0]", "trainer.device=cpu", "trainer.max_steps=300", "data=text_files"),
        *(f"data.paths=[{corpus_dir}/*.txt]", f"data.cache_dir={cache_dir}", "data.validation_fraction=0.2"),
        *("tokenizer.vocab_size=300", "model.vocab_size=300", "model.n_layer=1", "model.d_model=32", "model.n_head=2"),
        *("model.d_head=16", "model.context=32", "trainer.batch_size=4", "trainer.eval_tokens=512"),
        *("trainer.peak_flops=1e11", "schedule.warmup_steps=0"),
    ]


def test_a_folder_with_an_unusual_name(door, launched):
    door("-m", *STUDY, "run_dir='st 5,a'")
    assert "run_dir='st 5,a'" in launched[0] and Path("st 5,a/study.yaml").is_file()


def test_a_damaged_description_is_named(door, launched, capsys):
    Path("there").mkdir()
    Path("there/study.yaml").write_text("runs: [1, 2]")
    with pytest.raises(SystemExit):
        door("-m", *STUDY, "run_dir=there")
    assert "there/study.yaml cannot be read" in capsys.readouterr().err and not launched


def test_a_study_without_m_is_refused(door, capsys):
    with pytest.raises(SystemExit):
        door("experiment=ablate_star", main=lambda config: pytest.fail("trained"))
    assert "this experiment is a study of many runs: add -m" in capsys.readouterr().err


# A run that saves itself at the first signal and is lost at the second.
CHILD = """
import os, signal, sys, time
from gptstar.training.interrupt import Interrupt
open(sys.argv[1], "w").write("began")
with Interrupt() as interrupt:
    try:
        while not interrupt.requested: time.sleep(0.02)
        time.sleep(1)  # the step, and saving
    except KeyboardInterrupt:
        open(sys.argv[1], "w").write("lost"); sys.exit(1)
open(sys.argv[1], "w").write("saved"); sys.exit(75)
"""


def test_ctrl_c_reaches_a_run_once(tmp_path):
    script = f"""
import sys
from omegaconf import OmegaConf
from gptstar.lab.sweeps import launcher
child = [sys.executable, {str(tmp_path / "child.py")!r}, {str(tmp_path / "said")!r}]
launcher.ProcessLauncher._command = lambda self, overrides, number: child
launcher.ProcessLauncher().launch([["a=1"], ["b=1"]], 0)
"""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=environment, start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path / "said").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    assert job.wait(30) == 75
    assert (tmp_path / "said").read_text() == "saved"


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped(corpus_dir, cache_dir, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command, study = _command(corpus_dir, cache_dir, tmp_path / "study"), tmp_path / "study"
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 100
    while max((line["step"] for line in read_metrics(study / "a-0" / "metrics.jsonl")), default=0) < 5:
        assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=100)[0]
    assert job.returncode == 75 and "the same command goes on" in said, said
    assert not (study / "b-0").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "continuing after step" in again.stdout, again.stdout + again.stderr
    for name in ("a-0", "b-0"):
        lines = read_metrics(study / name / "metrics.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 301))
        assert "final_loss" in lines[-1]
    third = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert third.returncode == 0 and "2 of them finished already" in third.stdout
    assert "step " not in third.stdout


@pytest.mark.slow
def test_a_study_runs_as_jobs_of_a_cluster(corpus_dir, cache_dir, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **slurm.install(tmp_path / "bin")}
    command = _command(corpus_dir, cache_dir, tmp_path / "study")
    command = ["launcher=slurm" if part == "hydra/launcher=local" else part for part in command]
    command = ["trainer.max_steps=6" if part == "trainer.max_steps=300" else part for part in command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("a-0", "b-0"):
        assert "final_loss" in read_metrics(tmp_path / "study" / name / "metrics.jsonl")[-1]


@pytest.mark.slow
def test_a_study_runs_as_tasks_of_a_ray_cluster(corpus_dir, cache_dir, tmp_path):
    pytest.importorskip("ray")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = _command(corpus_dir, cache_dir, tmp_path / "study")
    command = ["launcher=ray" if part == "hydra/launcher=local" else part for part in command]
    command = ["trainer.max_steps=6" if part == "trainer.max_steps=300" else part for part in command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "ended with code 0" in done.stdout, done.stdout + done.stderr
    for name in ("a-0", "b-0"):
        assert "final_loss" in read_metrics(tmp_path / "study" / name / "metrics.jsonl")[-1]
