"""The door, as a user calls it: lines, table, plot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import save_weights
from support import tiny_model

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_line(tmp_path):
    torch.manual_seed(0)
    for name, position in (("a", "alibi"), ("b", "learned")):
        (tmp_path / name).mkdir()
        tokenizer = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
        save_weights(tmp_path / name, GPT(tiny_model(position=position)), tokenizer, {})
    (tmp_path / "text.txt").write_text("some words\n" * 20)
    command = [
        sys.executable,
        "-m",
        "gptstar.perplexity",
        "checkpoints=[a,b]",
        "text=[text.txt]",
        "contexts=[16,32,64]",
    ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and lines[0].startswith("a on text, context 16: token perplexity ")
    assert lines[5] == "note: contexts=[64] of b: its 32 learned positions are the most it can read; left out"
    folder = tmp_path / "evaluations" / "perplexity"
    assert sorted(path.name for path in folder.iterdir()) == ["perplexity.json", "perplexity.md", "perplexity.png"]
    assert "| b | learned | 32 |" in (folder / "perplexity.md").read_text()
