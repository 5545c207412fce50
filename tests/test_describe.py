"""The explanation: what it prints is what the functions count."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gptstar.configuration import preset
from gptstar.describe import DescribeConfig, describe
from gptstar.errors import UserError
from gptstar.model.describe import components
from support import tiny_model

ROOT = Path(__file__).resolve().parents[1]


def said(**settings) -> str:
    console = Console(file=io.StringIO(), width=160)
    describe(DescribeConfig(**settings), console)
    return console.file.getvalue()


def test_gpt127_is_explained():
    text = said(model=preset("gpt127"), diff="gpt2_small")
    for words in (
        "gpt127: 127,030,272 parameters",
        "query, key, value ── attention ── output",
        "24,576 bytes a token in bf16",
        "sequences of any length (trained on 512)",
        "0.5, 0.25, 0.125, 0.0625, 0.03125, 0.01562, 0.007812, 0.003906",
        "*.feedforward.down",
        "124,439,808",
    ):
        assert words in text, words


def test_windows_and_limits_are_told():
    text = said(model=preset("gpt_neo_125m"))
    assert "0: all (all), 1: 256 (all), 2: all (all)" in text and "at most 2048 tokens" in text
    assert "slopes" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"diff": "gpt2_smal"}, "diff=gpt2_smal is unknown"),
        ({"model": tiny_model(norm="batch")}, r"model.norm='batch' is unknown"),
        ({"model": tiny_model(position="learned"), "n_token": 64}, "n_token=64 must be at least 1 and at most 32"),
    ],
)
def test_mistakes_are_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        said(**settings)


def test_the_command_line(tmp_path):
    arguments = ["model.name=my idea", "--diff", "gpt2_3m", "model.vocab_size=300"]
    done = subprocess.run(
        [sys.executable, "-m", "gptstar.describe", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("my idea: ") and "gpt2_3m" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["star_3m", "gpt303", "gpt2_small", "neox_20b"])
def test_a_terminal_of_80_columns_shows_every_name_whole(name):
    console = Console(file=io.StringIO(), width=80)
    describe(DescribeConfig(model=preset(name)), console)
    table = console.file.getvalue().partition("layers (*)")[2]
    shown = {line.split(" ")[0] for line in table.splitlines()}
    for row in components(preset(name), 32):
        assert row.name.replace("blocks.*", "*").split(" ")[0] in shown
