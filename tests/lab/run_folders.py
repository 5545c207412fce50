"""Run folders, and runs, written by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gptstar.data.config import DataConfig
from gptstar.lab.reading.runs import HeldOut, Run
from gptstar.training.config import TrainConfig, TrainerConfig
from support import tiny_model

HELD_OUT = HeldOut(digest="aaaa", tokens=900, documents=9, bytes=2700, length=32)


def make_config(**changes: Any) -> dict:
    """A small run's, changed by flat keys: make_config(**{"optimizer.name": "muon"})."""
    config = asdict(
        TrainConfig(
            model=tiny_model(),
            data=DataConfig(name="tiny", corpus="text_files", paths=["a.txt"]),
            trainer=TrainerConfig(batch_size=4, max_steps=6),
        )
    )
    for key, value in changes.items():
        *above, last = key.split(".")
        place = config
        for name in above:
            place = place[name]
        place[last] = value
    return json.loads(json.dumps(config))


def make_lines(steps: int = 6, every: int = 3, final: bool = True) -> list[dict]:
    """Of metrics.jsonl: 128 tokens and half a second a step."""
    lines: list[dict] = []
    for step in range(1, steps + 1):
        at = {"step": step, "tokens": 128 * step}
        speed = {"seconds": 0.5, "tokens_per_second": 250.0 + step, "mfu": 0.4, "memory_gib": 0.1 * step}
        lines.append({**at, "epoch": 0.1, "loss": 6.0 - step / 10, "lr": 0.001, "grad_norm": 1.0, **speed})
        if step % every == 0:
            lines.append({**at, "validation_loss": 6.1 - step / 10, "bits_per_byte": 2.0, "validation_tokens": 64})
    if final:
        lines.append({**at, "final_loss": 5.5, "final_bits_per_byte": 1.9, "validation_tokens": 900})
    return lines


def write_run(
    folder: Path, config: dict | None = None, lines: list[dict] | None = None, facts: dict | str | None = "usual"
) -> Path:
    """A run folder as train.py leaves it; facts None: as an older version did."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or make_config()))
    text = "".join(json.dumps(line) + "\n" for line in (make_lines() if lines is None else lines))
    (folder / "metrics.jsonl").write_text(text)
    if facts == "usual":
        facts = {"parameters": 7, "flops_per_token": 42, "tokenizer": "t1", "held_out": asdict(HELD_OUT)}
    if facts is not None:
        (folder / "facts.json").write_text(json.dumps(facts))
    entry = {"device": "cpu", "cpu": "Abacus", "cores": 2, "commit": "c0ffee", "command": "train.py model=tiny"}
    (folder / "environment.json").write_text(json.dumps([entry]))
    return folder


def make_run(source: str, **changes: Any) -> Run:
    """One that has finished, as plain data."""
    values = {
        "name": source,
        "config": make_config(),
        "seed": 0,
        "budget": 768,
        "final_loss": 5.5,
        "final_bits_per_byte": 1.9,
        "tokenizer": "t1",
        "held_out": HELD_OUT,
        "hardware": "Abacus, 2 cores",
        "commit": "c0ffee",
    }
    return Run(source=source, **{**values, **changes})
