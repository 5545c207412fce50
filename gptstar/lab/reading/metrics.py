"""metrics.jsonl of a run folder, row by row, for whoever needs no more of a run than its curves."""

from __future__ import annotations

import json
from pathlib import Path

from gptstar.lab.reading.series import NUMBERS


def is_run(path: Path) -> bool:
    """Whether a folder is one that train.py has made, be it damaged."""
    here = [(path / name).is_file() for name in ("metrics.jsonl", "config.yaml", "environment.json")]
    return here[0] or all(here[1:])


def metric_rows(run: Path, problems: list[str]) -> list[dict]:
    """Those that can be read, the others named in `problems`; a last line torn by a kill is none."""
    try:
        text = (run / "metrics.jsonl").read_text(errors="replace")
    except OSError:
        return []
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        row = _row(line)
        if row is not None:
            lines.append(row)
        elif line.strip():
            problems.append(f"metrics.jsonl line {number} cannot be read")
    return lines


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    measures = any(key in row for key in ("loss", "validation_loss"))
    if measures and not isinstance(row.get("tokens"), int):
        return None
    values = (row[key] for key in NUMBERS if row.get(key) is not None)
    return row if all(isinstance(value, (int, float)) for value in values) else None
