"""Which column or metric of somebody else's tracking is which of ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from gptstar.errors import UserError

ALIASES = {
    "run": ("run_name", "name", "run_id"),
    "seed": ("trainer.seed", "random_seed"),
    "variant": ("group",),
    "step": ("_step", "global_step", "trainer/global_step", "train/global_step", "iteration", "iter"),
    "tokens": ("tokens_seen", "train/tokens", "train/tokens_seen", "total_tokens", "consumed_tokens", "n_tokens"),
    "tokens_per_step": ("tokens_per_iter", "tokens_per_batch"),
    "seconds": ("elapsed", "training_seconds", "train/seconds", "train_time"),
    "loss": ("train_loss", "train/loss", "training_loss", "loss/train", "train/lm_loss"),
    "validation_loss": (
        *("val_loss", "val/loss", "valid_loss", "valid/loss", "validation/loss", "loss/val"),
        *("eval_loss", "eval/loss", "held_out_loss"),
    ),
    "bits_per_byte": ("bpb", "val_bpb", "val/bpb", "eval/bpb", "validation/bits_per_byte"),
    "final_loss": (),
    "final_bits_per_byte": (),
    "tokens_per_second": ("throughput", "tok/s", "train/tokens_per_second", "tokens/s"),
    "mfu": ("train/mfu",),
    "memory_gib": (),
}
COUNTS = ("step", "tokens", "tokens_per_step")


def find_columns(names: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """{our name: theirs} for those of the names that are known, whatever their case; `given` goes before the table.

    Raises UserError where `given` speaks of what is none of ours or not there.
    """
    there = list(names)
    for ours, theirs in (given or {}).items():
        if ours not in ALIASES:
            raise UserError(f"columns: {ours} is none that is read: choose among {', '.join(ALIASES)}")
        if theirs not in there:
            raise UserError(f"columns: {ours}={theirs} is not there: choose among {', '.join(sorted(there))}")
    lower: dict[str, str] = {}
    for name in there:
        lower.setdefault(name.strip().lower(), name)
    found = dict(given or {})
    for ours, aliases in ALIASES.items():
        match = next((lower[alias] for alias in (ours, *aliases) if alias in lower), None)
        if ours not in found and match is not None and match not in found.values():
            found[ours] = match
    return found


def number(value: Any) -> float | int | None:
    """What a cell or a logged value says, None for an empty one. Raises ValueError for what is no number."""
    if value is None or value == "":
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return int(value)
    except ValueError:
        return float(value)


def foreign_rows(rows: Iterable[dict], tokens_per_step: float | None) -> tuple[list[dict], list[str]]:
    """Rows of somebody else's tracking, under our names, as `gptstar.lab.reading.series.curves` takes them, and what is
    wrong with them.

    Tokens are those of the row before where a row has none, or its step times tokens_per_step; `seconds` is training
    time until then; the last validation counts as the final one where there is none.
    """
    made: list[dict] = []
    problems: list[str] = []
    step, tokens = 0, None
    for row in rows:
        row = {key: value for key, value in row.items() if value is not None}
        row = {key: value for key, value in row.items() if key not in COUNTS or math.isfinite(value)}
        step = int(row.get("step", step))
        each = row.pop("tokens_per_step", tokens_per_step)
        tokens = row.get("tokens", step * (each or 0) if each or not step else tokens)
        if "seconds" in row:
            row["elapsed"] = row.pop("seconds")
        made.append({**row, "step": step, "tokens": None if tokens is None else int(tokens)})
    if any(row["tokens"] is None for row in made if "loss" in row or "validation_loss" in row):
        problems.append("its tokens are not known: neither a column tokens nor a column tokens_per_step is there")
    times = [row["elapsed"] for row in made if "elapsed" in row]
    if any(later < earlier for earlier, later in pairwise(times)):
        problems.append("its seconds fall: they must be training time since the start")
    validations = [row for row in made if "validation_loss" in row]
    if made and not any("final_loss" in row for row in made):
        if not validations:
            return made, ["it has no validation loss"]
        last = validations[-1]
        final = {"final_loss": last["validation_loss"], "final_bits_per_byte": last.get("bits_per_byte")}
        made.append({"step": step, "tokens": made[-1]["tokens"], **final})
    return made, problems
