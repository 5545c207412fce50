"""hydra/launcher=slurm, with a stand-in for Slurm's commands that runs jobs right here."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
from ranks import metrics

from gptstar.training.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(corpus_dir, cache_dir, tmp_path):
    return [
        *(sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", f"run_dir={tmp_path / 'sweep'}"),
        *("trainer.device=cpu", "trainer.max_steps=400", "data=text_files", f"data.paths=[{corpus_dir}/*.txt]"),
        *(f"data.cache_dir={cache_dir}", "data.validation_fraction=0.2", "tokenizer.vocab_size=300"),
        *("model.vocab_size=300", "model.n_layer=1", "model.d_model=32", "model.n_head=2", "model.d_head=16"),
        *("model.d_ff=48", "model.context=32", "trainer.batch_size=4", "trainer.eval_tokens=512"),
        *("trainer.peak_flops=1e11", "schedule.warmup_steps=0", "trainer.timeout=60"),
    ]


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **slurm.install(tmp_path / "bin")}


def test_a_preempted_job_of_two_tasks_saves_itself_is_queued_again_and_goes_on(command, environment, tmp_path):
    job = subprocess.Popen(
        [*command, "hydra.launcher.tasks_per_node=2", "trainer.parallel=fsdp"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 100
        while max((line["step"] for line in read_metrics(_run(tmp_path, 0) / "metrics.jsonl")), default=0) < 5:
            assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
            time.sleep(0.02)
        tasks = _tasks(tmp_path)
        assert len(tasks) == 2
        for task in tasks:
            os.kill(task, signal.SIGUSR2)
        output, _ = job.communicate(timeout=150)
    finally:
        job.kill()
    assert job.returncode == 0, output
    run = _run(tmp_path, 0)
    log = (run / "train.log").read_text()
    assert "SIGUSR2: saved" in log and re.search(r"continuing after step \d+", log)
    assert len(metrics(run, "loss")[0]) == 400 and len(metrics(run, "final_loss")[0]) == 1


def test_a_failed_job_is_named_in_one_line(command, environment):
    one = [*command, "trainer.max_steps=4", "optimizer.lr=1e30"]
    done = subprocess.run(one, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"error: run 0 ended with exit code 3: its log is in run_dir/.slurm", done.stderr)


def _run(folder: Path, number: int) -> Path:
    """The folder of a run of the sweep, once there is one."""
    named = re.compile(rf"{number}(-.*)?")
    return next((path for path in (folder / "sweep").glob("*") if named.fullmatch(path.name)), folder)


def _tasks(folder: Path) -> list[int]:
    """The processes that train."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = f"STAND_IN_SLURM={folder}" in (path / "environ").read_text()
            if here and "submitit.core._submit" in (path / "cmdline").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if "SLURM_PROCID=" in (Path("/proc") / str(pid) / "environ").read_text()]
