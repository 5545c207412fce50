"""hydra/launcher=local: each run of a sweep in a process of its own, one after another.

A run's memory is then its own, and nothing of one (threads, caches, random state, a crash) reaches the next.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from gptstar.configuration import config_folders, quoted
from gptstar.errors import EXIT_INTERRUPTED


class ProcessLauncher(Launcher):
    """jobs: how many run at the same time, each with its share of the cores."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self.told: set[subprocess.Popen] = set()  # to save themselves and end
        self.stopping = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Ends with exit code 75 where a signal came; the run has saved itself then."""
        console = Console()
        commands = [self._command(overrides, number) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        codes: dict[int, int] = {}
        waiting = list(enumerate(commands))
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            active: dict[int, subprocess.Popen] = {}
            while waiting or active:
                while waiting and len(active) < self.jobs and not self.stopping:
                    number, command = waiting.pop(0)
                    console.print(
                        f"\nrun {number + 1} of {len(commands)}: {_told(command)}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
                    active[number] = subprocess.Popen(
                        command,
                        env=self._environment(),
                        start_new_session=True,  # a Ctrl-C is the launcher's to pass on, once
                        preexec_fn=end_with_parent,
                    )
                for number, process in list(active.items()):
                    if (code := process.poll()) is not None:
                        codes[number] = code
                        del active[number]
                if self.stopping:
                    for process in set(active.values()) - self.told:
                        self.told.add(process)
                        process.send_signal(signal.SIGTERM)
                if self.stopping and not active:
                    console.print("interrupted: the same command goes on")
                    sys.exit(EXIT_INTERRUPTED)
                if EXIT_INTERRUPTED in codes.values():  # a signal to the run itself
                    self.stopping = True
                time.sleep(0.1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return [returned(codes[number]) for number in range(len(commands))]

    def _command(self, overrides: Sequence[str], number: int) -> list[str]:
        """As on a command line, with the sweep's folder and the run's name in it as its run_dir."""
        own = [o for o in overrides if not o.startswith(("run_dir=", "hydra.sweep.subdir="))]
        given = dict(o.split("=", 1) for o in overrides if o.startswith(("run_dir=", "hydra.sweep.subdir=")))
        folder = Path(str(self.config.hydra.sweep.dir)) / given.get("hydra.sweep.subdir", str(number))
        return [sys.executable, sys.argv[0], *config_folders(), *own, f"run_dir={quoted(str(folder))}"]

    def _environment(self) -> dict[str, str]:
        if self.jobs == 1:
            return dict(os.environ)
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs)), **os.environ}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """At a signal no further run begins, and those that there are are told, once: they save themselves."""
        self.stopping = True


def end_with_parent() -> None:
    """A run whose launcher is killed saves itself, so that the same command can go on with it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _told(command: list[str]) -> str:
    hidden = ("resume=", "logger.group=")
    return shlex.join(["train.py", *(a for a in command[2:] if not a.startswith(hidden))])


def returned(code: int) -> JobReturn:
    """What Hydra is told of a process that has ended."""
    result = JobReturn()
    result.status = JobStatus.COMPLETED if code == 0 else JobStatus.FAILED
    result.return_value = None if code == 0 else RuntimeError(f"exit code {code}")
    return result
