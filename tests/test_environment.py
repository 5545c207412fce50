import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptstar import environment
from gptstar.environment import commit, describe_environment

PROSE = ("README.md", "gptstar/a.md", "docs/studies/a.json", "benchmarks/results/a.json")


@pytest.mark.parametrize(
    ("started", "command"),
    [
        (["/usr/bin/python3", "train.py", "run_dir=my run"], ["python", "train.py", "run_dir=my run"]),
        (["/usr/bin/python3", "/opt/bin/gptstar", "train", "tags=[a, b]"], ["gptstar", "train", "tags=[a, b]"]),
    ],
)
def test_the_command_of_a_run_can_be_typed_again(monkeypatch, started, command):
    monkeypatch.setattr(sys, "orig_argv", started)
    assert shlex.split(describe_environment(torch.device("cpu"))["command"]) == command


@pytest.fixture
def checkout(monkeypatch, tmp_path) -> Path:
    """A repository of its own whose gptstar/environment.py is the one that asks."""
    for name in ("gptstar/environment.py", *PROSE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "gptstar" / "environment.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def test_a_checkout_has_a_commit(checkout):
    assert commit() == git(checkout, "rev-parse", "HEAD")[:12]


def test_it_is_dirty_where_what_runs_has_changed(checkout):
    clean = commit()
    for name in PROSE:
        (checkout / name).write_text("after\n")
    (checkout / "new.py").write_text("untracked\n")
    assert commit() == clean
    (checkout / "gptstar" / "environment.py").write_text("after\n")
    assert commit() == f"{clean}-dirty"
    git(checkout, "add", ".")
    assert commit() == f"{clean}-dirty"


def test_the_repository_that_a_package_is_installed_in_is_not_its_own(checkout, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(checkout / "lib" / "site-packages" / "gptstar" / "environment.py"))
    (checkout / "lib" / "site-packages" / "gptstar").mkdir(parents=True)
    assert commit() is None


def test_outside_a_repository_there_is_none(checkout, monkeypatch):
    monkeypatch.setattr(environment, "__file__", "/nowhere/gptstar/environment.py")
    assert commit() is None
