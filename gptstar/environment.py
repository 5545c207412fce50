"""environment.json: what a run's numbers were made with."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import gptstar

PACKAGES = ("torch", "numpy", "tokenizers", "datasets", "hydra-core", "safetensors")
WHAT_DOES_NOT_RUN = ("*.md", "docs", "benchmarks/results")  # of a checkout


def describe_environment(device: torch.device) -> dict:
    """Versions, commit, hardware and command of this process."""
    return {
        "gptstar": gptstar.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda,
        "command": command_line(),
        "launch": launch(),
    }


def command_line() -> str:
    """The command that this process was started with, as one would type it."""
    _, *told = sys.orig_argv
    if told and Path(told[0]).name == "gptstar":  # the program that an installed package has, called by its name
        return shlex.join(["gptstar", *told[1:]])
    return shlex.join(["python", *told])


def door_command(name: str) -> str:
    """How a door is called from where this process was: python NAME.py in a checkout, gptstar NAME elsewhere."""
    _, *told = sys.orig_argv
    if "gptstar" in (Path(told[0]).name if told else "", *told[1:2]):
        return f"gptstar {name}"
    here = os.path.relpath(sys.executable)
    return f"{'python' if here.startswith('..') else here} {name}.py"


def launch() -> str | None:
    """What the processes of one launch, and those it starts again, have in common; None without a launcher."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job == "none":  # torchrun without --standalone or --rdzv-id: its process, and when that began
        parent = os.getppid()
        try:
            began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            began = "0"
        return f"job-{parent}-{began}"
    if job:
        return f"job-{job}"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 or "SLURM_RESTART_COUNT" in os.environ:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
        return "slurm-" + "-".join(os.environ.get(name, "0") for name in names)
    return None


def launches(run: Path) -> list[str | None]:
    """Those that have worked in a run folder."""
    try:
        return [entry.get("launch") for entry in json.loads((run / "environment.json").read_text())]
    except (OSError, ValueError, TypeError, AttributeError):  # AttributeError, TypeError: it is JSON of another shape
        return []


def commit() -> str | None:
    """The git commit of the checkout, "-dirty" appended when what runs has changed; None outside a checkout.

    Pages, and what benchmarks found, do not run. An installed package has none, inside somebody's repository neither.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        found = _git(root, "rev-parse", "--show-toplevel", "--short=12", "HEAD").stdout
        top, _, revision = found.strip().rpartition("\n")
        if Path(top).resolve() != root:
            return None
        changes = _git(root, "diff", "--quiet", "HEAD", "--", ".", *(f":!{path}" for path in WHAT_DOES_NOT_RUN), most=1)
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + "-dirty" * changes.returncode


def _git(root: Path, *arguments: str, most: int = 0) -> subprocess.CompletedProcess[str]:
    """most: the largest exit status that is no failure."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    if not 0 <= done.returncode <= most:
        raise subprocess.SubprocessError(done.stderr)
    return done


def cpu_name() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
