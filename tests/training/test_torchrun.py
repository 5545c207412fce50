"""train.py under torchrun itself: a killed rank, and two machines."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import metrics

import gptstar
from gptstar.training.metrics import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def arguments(corpus_dir: Path, cache_dir: Path, run: Path, steps: int) -> list[str]:
    return [
        *(str(ROOT / "train.py"), f"run_dir={run}", "trainer.device=cpu", f"trainer.max_steps={steps}"),
        *("data=text_files", f"data.paths=[{corpus_dir}/*.txt]", f"data.cache_dir={cache_dir}"),
        *("data.validation_fraction=0.2", "tokenizer.vocab_size=300", "model.vocab_size=300", "model.n_layer=2"),
        *("model.d_model=32", "model.n_head=2", "model.d_head=16", "model.d_ff=48", "model.context=32"),
        *("trainer.batch_size=4", "trainer.checkpoint_every=10", "trainer.eval_tokens=512", "trainer.peak_flops=1e11"),
        *("schedule.warmup_steps=0", "trainer.timeout=60"),
    ]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_a_killed_rank_is_started_again_and_the_run_ends_as_an_undisturbed_one(
    corpus_dir, cache_dir, tmp_path, environment
):
    steps = 100
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    disturbed, quiet = tmp_path / "disturbed", tmp_path / "quiet"
    command = [*launch, *arguments(corpus_dir, cache_dir, disturbed, steps), "trainer.parallel=fsdp"]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait(lambda: _step(disturbed) >= 30 and any((disturbed / "checkpoints").glob("step-*")), job)
        os.kill(_worker(job.pid, rank=1), signal.SIGKILL)
        output, _ = job.communicate(timeout=150)
    finally:
        job.kill()
    assert job.returncode == 0, output
    assert re.search(r"continuing after step \d+0\b", (disturbed / "train.log").read_text()), output
    done = subprocess.run(
        [*launch, *arguments(corpus_dir, cache_dir, quiet, steps), "trainer.parallel=ddp"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (losses, end), (quiet_losses, quiet_end) = (metrics(run, "loss", "final_loss") for run in (disturbed, quiet))
    assert len(losses) == len(quiet_losses) == steps
    assert losses == pytest.approx(quiet_losses, rel=2e-3) and end == pytest.approx(quiet_end, rel=2e-4)


def test_two_machines_at_two_addresses_train_one_model(corpus_dir, cache_dir, tmp_path, environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    run, jobs = tmp_path / "run", []
    for node, address in enumerate(("127.0.0.2", "127.0.0.3")):
        launch = [*TORCHRUN, "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--local-addr={address}"]
        launch += ["--master-addr=127.0.0.2", f"--master-port={port}"]
        command = [*launch, *arguments(corpus_dir, cache_dir, run, 8)]
        jobs.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert len(metrics(run, "loss")[0]) == 8 and "ddp on 2 ranks" in (run / "train.log").read_text()
    assert gptstar.load(run)
    assert "try next" in outputs[0][0] and not outputs[1][0]  # the first one speaks for all


def test_a_mistake_is_told_once(corpus_dir, cache_dir, tmp_path, environment):
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
    command = [*launch, *arguments(corpus_dir, cache_dir, tmp_path / "run", 8), "trainer.batch_size=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    lines = [
        line for line in done.stderr.splitlines() if "trainer.batch_size=3 cannot be divided among 2 ranks" in line
    ]
    assert len(lines) == 2, done.stderr  # by rank 0, and by torchrun in its table of failures
    assert lines[0].startswith("error: ") and lines[1].strip().startswith("traceback : error: ")


def _step(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run / "metrics.jsonl")), default=0)


def _wait(condition, job: subprocess.Popen) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def _worker(parent: int, rank: int) -> int:
    """The process of a rank below torchrun's."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            child = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            if child and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"rank {rank} has no process")
