"""What was logged, row by row, as a run's curves: the same for a run folder, a wandb file and a CSV export.

A row holds what metrics.jsonl has in one line or, where a source merges them, in several lines of one step; foreign
sources give `elapsed`, training time until then, instead of the `seconds` of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gptstar.lab.reading.runs import Validation

NUMBERS = (
    *("step", "tokens", "seconds", "elapsed", "loss", "validation_loss", "bits_per_byte"),
    *("final_loss", "final_bits_per_byte", "tokens_per_second", "mfu", "memory_gib"),
)


def curves(rows: Iterable[dict]) -> dict[str, Any]:
    """The fields of `gptstar.lab.reading.runs.Run` that rows tell.

    Rows come in the order of writing: a step that comes again, after a resumption, takes back itself and all that came
    after it. A loss of None is not a number there.
    """
    steps: list[dict] = []
    checks: list[dict] = []
    final: dict = {}
    for row in rows:
        if "loss" in row:
            if steps and row["step"] <= steps[-1]["step"]:
                steps = [kept for kept in steps if kept["step"] < row["step"]]
                checks = [kept for kept in checks if kept["step"] < row["step"]]
            steps.append(row)
            final = {}
        if row.get("validation_loss") is not None:
            checks = [kept for kept in checks if kept["step"] < row["step"]] if _again(checks, row) else checks
            checks.append(row)
        if row.get("final_loss") is not None:
            final = row
    numbers = np.array([row["step"] for row in steps], np.int64)
    tokens = np.array([row.get("tokens") or 0 for row in steps], np.int64)
    seconds = _seconds(steps)
    return {
        "steps": numbers,
        "tokens": tokens,
        "losses": np.array([_finite(row["loss"]) for row in steps]),
        "seconds": seconds,
        "validations": [_validation(row, numbers, tokens, seconds) for row in checks],
        "final_loss": final.get("final_loss"),
        "final_bits_per_byte": final.get("final_bits_per_byte"),
        "tokens_per_second": _over(np.median, steps, "tokens_per_second"),
        "mfu": _over(np.median, steps, "mfu"),
        "memory_gib": _over(np.max, steps, "memory_gib"),
    }


def first_bad_step(numbers: np.ndarray, losses: np.ndarray) -> int | None:
    """The first of the steps without a finite loss that a run ends with; None where its last one has a finite loss."""
    good = np.flatnonzero(np.isfinite(losses))
    first = int(good[-1]) + 1 if len(good) else 0
    return int(numbers[first]) if first < len(losses) else None


def _again(checks: list[dict], row: dict) -> bool:
    return bool(checks) and row["step"] <= checks[-1]["step"]


def _finite(value: Any) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _seconds(steps: list[dict]) -> np.ndarray | None:
    if steps and all(row.get("elapsed") is not None for row in steps):
        return np.array([float(row["elapsed"]) for row in steps])
    if steps and all(row.get("seconds") is not None for row in steps):
        return np.cumsum([float(row["seconds"]) for row in steps])
    return None


def _validation(row: dict, numbers: np.ndarray, tokens: np.ndarray, seconds: np.ndarray | None) -> Validation:
    last = int(np.searchsorted(numbers, row["step"], side="right")) - 1  # the step it came after
    seen = row.get("tokens")
    if seen is None:
        seen = int(tokens[last]) if last >= 0 else 0
    elapsed = row.get("elapsed")
    if elapsed is None and seconds is not None:
        elapsed = float(seconds[last]) if last >= 0 else 0.0
    return Validation(int(row["step"]), int(seen), elapsed, row["validation_loss"], row.get("bits_per_byte"))


def _over(summary: Any, steps: list[dict], key: str) -> float | None:
    values = [row[key] for row in steps if row.get(key) is not None]
    return float(summary(values)) if values else None
