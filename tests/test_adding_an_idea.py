"""docs/adding_an_idea.md, done to a copy of the project: its files, its table entry, its YAML, its commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_an_idea.md").read_text()


def apply_diff(text: str, diff: str) -> str:
    """Each run of + lines goes after the line of context above it."""
    above = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"\n{above}\n") == 1, above
            text = text.replace(f"\n{above}\n", f"\n{above}\n{line[1:]}\n")
        above = line[1:]
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("gptstar", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "sample.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    blocks = re.findall(r"^`([\w/.]+)`\n\n```(\w+)\n(.*?)```$", PAGE, re.S | re.M)
    assert [kind for _, kind, _ in blocks] == ["python", "diff", "yaml"]
    for name, kind, content in blocks:
        path = folder / name
        assert path.is_file() == (kind == "diff")
        path.write_text(apply_diff(path.read_text(), content) if kind == "diff" else content)
    write_corpus(folder / "corpus")
    return folder


def run(project: Path, command: str) -> str:
    words = shlex.split(command.replace("'def '", "abc"))
    assert words[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words[1:]], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_does_what_the_page_says(project):
    commands = re.search(r"^```\n(python -m gptstar.describe.*?)```$", PAGE, re.S | re.M)[1].splitlines()
    describe, battery, train, sample = commands
    explained = run(project, describe)
    assert "norm2 ── shift ── feedforward" in explained and "block" in explained
    assert "2 passed" in run(project, battery)
    assert "1 passed" in run(
        project, "python -m pytest tests/model/test_battery.py -k every_point_of_the_space_answers"
    )
    train += " data=text_files data.paths=[corpus/*.txt] data.cache_dir=cache tokenizer.vocab_size=300"
    train += " trainer.max_steps=4 schedule.warmup_steps=1 trainer.eval_tokens=2000 trainer.peak_flops=1e11"
    text = run(project, train)
    assert "bits/byte on all held-out text" in text
    assert run(project, sample + " max_new_tokens=5").startswith("abc")


def test_the_page_is_right_about_the_line_that_padding_needs(project):
    path = project / "gptstar" / "model" / "token_shift.py"
    good = path.read_text()
    try:
        path.write_text("\n".join(line for line in good.splitlines() if "sight.position" not in line))
        with pytest.raises(AssertionError, match=r"1 failed"):
            run(project, "python -m pytest tests/model/test_battery.py -k token_shift")
    finally:
        path.write_text(good)
