"""`sample.py memory_budget=`: the text is the same, the plan is told, and the system says that the budget was kept."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.configuration import preset
from gptstar.errors import UserError
from gptstar.generation.command import SampleConfig, run
from gptstar.pretrained.native import save_weights
from support import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DOOR = """
import re, sys
from pathlib import Path
sys.argv = ["sample.py", *sys.argv[1:]]
try:
    exec(Path("sample.py").read_text())
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """170 million numbers in fp16."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("large"), tiny_tokenizer(400)
    config = preset("gpt2_small", vocab_size=400, n_layer=24, context=64)
    save_weights(folder, gptstar.GPT(config).half().eval(), tokenizer, {})
    return folder


def door(*arguments: str) -> tuple[str, str, int]:
    """Output, what goes to stderr, and the most bytes that the process has held."""
    done = subprocess.run(
        [sys.executable, "-c", DOOR, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stderr.strip().splitlines()
    return done.stdout, "\n".join(said), int(peak) * 1024


@pytest.mark.timeout(600)
def test_the_budget_is_kept_and_the_text_the_same(large):
    asked = (f"checkpoint={large}", "prompt=abc", "max_new_tokens=12", "temperature=0", "device=cpu")
    expected, _, whole = door(*asked, "dtype=fp32")
    budget = whole - 200 * 2**20
    text, said, peak = door(*asked, f"memory_budget={budget}")
    assert text == expected
    assert peak <= budget
    kept, on_disk = map(int, re.search(r"of 24 layers (\d+) stay in memory and (\d+) on disk", said).groups())
    assert kept + on_disk == 24 and on_disk
    text, said, peak = door(*asked, "memory_budget=20G")
    assert text == expected and "all of it fits" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_budget": "a lot"}, "memory_budget=a lot must be a number of bytes"),
        ({"memory_budget": "1M"}, "is the least for"),
        ({"memory_budget": "1G", "dtype": "int8"}, "leave one of them out"),
        ({"memory_budget": "1G", "compile": True}, "leave compile"),
    ],
)
def test_what_cannot_be_is_told(large, changes, words):
    with pytest.raises(UserError, match=words):
        run(SampleConfig(checkpoint=str(large), prompt="abc", device="cpu", **changes))
