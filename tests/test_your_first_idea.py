"""docs/your_first_idea.md, done as it stands: its files, in a folder outside the checkout, and its commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your_first_idea.md").read_text()
FILES = dict(re.findall(r"^`(\w+\.py)`\n\n```python\n(.*?)```$", PAGE, re.S | re.M))
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))


def commands(section: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", SECTIONS[section], re.S | re.M)
    return [line for kind, text in fences if not kind for line in text.splitlines() if line.startswith("python ")]


# So that what the page has trained for minutes takes seconds.
SMALL = "data=text_files data.paths=[corpus/*.txt] data.cache_dir=cache tokenizer.vocab_size=300 trainer.max_steps=4"
SMALL += " schedule.warmup_steps=1 trainer.eval_tokens=2000 trainer.peak_flops=1e11 trainer.sequence_length=32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tonight")
    for name, content in FILES.items():
        (made / name).write_text(content)
    write_corpus(made / "corpus")
    return made


def run(folder: Path, command: str) -> subprocess.CompletedProcess:
    _, *words = shlex.split(command)
    if words[0] == "train.py":
        words = [word for word in words if not word.startswith("trainer.sequence_length")] + SMALL.split()
    if words[0].endswith(".py"):
        words[0] = str(ROOT / words[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "xdg")}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("section", "name", "n_command"),
    [
        ("A position encoding", "kerple", 4),
        ("A block", "token_shift", 4),
        ("Attention", "sharpness", 1),
        ("An optimizer", "signum", 4),
    ],
)
@pytest.mark.timeout(900)
def test_every_command_of_the_page_does_what_it_says(folder, section, name, n_command):
    assert len(commands(section)) == n_command
    for command in commands(section):
        done = run(folder, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if "gptstar.check" in command:
            assert "all answers are right" in done.stdout
        if "compare.py" in command:
            assert re.search(rf"\*\*.*{name}.*\*\*: .*95% interval", done.stdout), done.stdout
        if "describe" in command:
            assert "norm2 ── shift ── feedforward" in done.stdout


def test_the_page_counts_its_lines():
    counts = {name: int(n) for name, n in re.findall(r"\| `(\w+\.py)` \| (\d+) \|", PAGE)}
    assert counts == {name: len(text.splitlines()) for name, text in FILES.items()} and len(counts) == 4


def test_the_page_is_right_about_the_line_that_padding_needs(folder):
    good = FILES["token_shift.py"]
    (folder / "worse.py").write_text("\n".join(line for line in good.splitlines() if "sight.position" not in line))
    done = run(folder, "python -m gptstar.check worse.py")
    assert done.returncode == 1
    assert "FAILED reads rows independently: a row with padding on its left sees the padding" in done.stdout
