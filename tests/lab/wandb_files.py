"""Files of wandb's, made by wandb itself without a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gptstar.lab.reading.wandb_offline import _records, find_wandb


def track(folder: Path, rows: Sequence[dict], first: int = 0, **options) -> list[Path]:
    """Logs the rows as a foreign project would, and gives the files in the folder."""
    import wandb

    run = wandb.init(mode="offline", dir=str(folder), project="p", settings=wandb.Settings(silent=True), **options)
    for step, row in enumerate(rows, first):
        run.log(row, step=step)
    run.finish()
    return written(folder)


def written(folder: Path) -> list[Path]:
    """The files in folder/wandb, once they are whole: wandb goes on writing after a run's finish()."""
    files = find_wandb(folder / "wandb")
    until = time.monotonic() + 60
    for file in files:
        while not any(record.WhichOneof("record_type") == "exit" for record in _records(file, [])):
            assert time.monotonic() < until, f"{file} does not end"
            time.sleep(0.05)
    return files
