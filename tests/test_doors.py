"""`gptstar NAME`: every door is there, wherever the package lies."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from gptstar.__main__ import MODULES, SCRIPTS, script
from gptstar.environment import command_line, door_command

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gptstar", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    )


def test_every_script_of_the_checkout_is_a_door_and_goes_into_the_wheel():
    assert {path.stem for path in ROOT.glob("*.py")} == set(SCRIPTS)
    assert all(script(name) == ROOT / f"{name}.py" for name in SCRIPTS)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "gptstar/configs"} | {
        f"{name}.py": f"gptstar/doors/{name}.py" for name in SCRIPTS
    }
    assert all(find_spec(module) for module, _ in MODULES.values())


def test_help_and_mistakes(tmp_path):
    said = run(cwd=tmp_path)
    assert said.returncode == 0 and all(f"  {name} " in said.stdout for name in [*SCRIPTS, *MODULES])
    wrong = run("trian", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: trian is not a command: choose one of train, ")


def test_a_door_gets_the_rest_of_the_line(tmp_path):
    done = run("describe", "model=star_3m", cwd=tmp_path)
    assert done.returncode == 0 and "2,578,336 parameters" in done.stdout
    done = run("plan", "experiment=gpt127", "hardware=a5000x4", cwd=tmp_path)
    assert done.returncode == 0 and "gpt127 on a5000x4" in done.stdout and not [*tmp_path.iterdir()]
    done = run("train", "trainer.max_stepz=1", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean trainer.max_steps?" in done.stderr and not [*tmp_path.iterdir()]


def test_commands_are_told_as_they_were_typed(monkeypatch):
    for argv, typed in (
        (["/usr/bin/python3", "/home/me/env/bin/gptstar", "compare", "a b"], "gptstar compare 'a b'"),
        (["/usr/bin/python3", "compare.py", "runs/pair"], "python compare.py runs/pair"),
        (["/usr/bin/python3", "-m", "gptstar", "compare"], "python -m gptstar compare"),
    ):
        monkeypatch.setattr(sys, "orig_argv", argv)
        assert command_line() == typed


@pytest.mark.parametrize(
    ("called", "said"),
    [
        (["python", "train.py", "x=1"], "sample.py"),
        (["python", "-m", "gptstar", "train"], "gptstar sample"),
        (["python", "/opt/bin/gptstar", "train"], "gptstar sample"),
    ],
)
def test_hints_name_the_door_as_it_was_called(monkeypatch, called, said):
    monkeypatch.setattr(sys, "orig_argv", called)
    assert door_command("sample").endswith(said)
