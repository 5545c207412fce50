"""The door, as a user calls it: a run, text and files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.training.config import TrainConfig, TrainerConfig
from gptstar.training.run_folder import open_run_folder
from support import tiny_model, write_corpus

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_line(tmp_path):
    write_corpus(tmp_path / "text")
    data = DataConfig(name="t", corpus="text_files", paths=["text/*.txt"], cache_dir="cache", packing="best_fit")
    trainer = TrainerConfig(batch_size=8, max_steps=10)
    config = TrainConfig(tiny_model(), data, TokenizerConfig(vocab_size=300), trainer=trainer)
    open_run_folder(replace(config, run_dir=str(tmp_path / "run")), None, {})
    words = ["run=run", "data.cache_dir=other", "step=1", "window=7", "tokens=true", "output_dir=look, please"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    command = [sys.executable, "-m", "gptstar.inspect", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 1 (from 0), sequence 7 of 8: 32 tokens of t" in done.stdout and "* best_fit" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["look, please/inspection.json", "look, please/inspection.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look, please", "other", "run", "text"]
