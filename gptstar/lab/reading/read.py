"""A run folder, finished or not, as a Run. What is wrong with it is said in Run.problem, never raised."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gptstar.errors import UserError, reason
from gptstar.ideas import versions
from gptstar.lab.reading.description import read_study
from gptstar.lab.reading.metrics import metric_rows
from gptstar.lab.reading.runs import HeldOut, Run
from gptstar.lab.reading.series import curves, first_bad_step
from gptstar.lab.reading.settings import budget, names_in, seed_of, size, variant_of
from gptstar.pretrained.native import list_checkpoints, read_run_config, read_tokenizer


def read_run(path: str | Path) -> Run:
    """A run from its folder; the study it is part of (../study.yaml) names its variant. UserError only where that
    file cannot be read.
    """
    run = Path(path).expanduser()
    name = run.absolute().name
    problems: list[str] = []
    config = _config(run, problems)
    found = curves(metric_rows(run, problems))
    facts = _facts(run, problems)
    parameters, flops = (facts.get("parameters"), facts.get("flops_per_token")) if facts else size(config)
    place = read_study(run.absolute().parent)["runs"].get(name, {})
    wanted = budget(config)
    if not problems:
        problems += ending(found, wanted[0] if wanted else None)
    return Run(
        source=str(run),
        name=name,
        config=config,
        seed=place.get("seed", seed_of(config)),
        variant=place.get("variant") or variant_of(config, name),
        budget=wanted[1] if wanted else None,
        parameters=parameters,
        flops_per_token=flops,
        tokenizer=facts["tokenizer"] if facts else _tokenizer(run),
        held_out=HeldOut(**facts["held_out"]) if facts else None,
        problem=problems[0] if problems else None,
        **found,
        **_environment(run),
    )


def ending(found: dict[str, Any], total: int | None) -> list[str]:
    """What is wrong with how a run ended, from its `curves`; total: the steps it was to take, None where unknown."""
    steps, final = found["steps"], found["final_loss"]
    reached = [*steps[-1:], *(validation.step for validation in found["validations"][-1:])]
    if not reached:
        return ["no metrics yet"]
    last = int(max(reached))
    whole = total is None or last >= total
    if final is not None and whole:
        return [] if math.isfinite(final) else ["its final loss is not finite"]
    bad = first_bad_step(steps, found["losses"])
    if bad is not None:
        return [f"its loss became infinite at step {bad}"]
    if not whole:
        return [f"stopped at step {last} of {total}"]
    return [f"stopped at step {last}, before its final validation"]


def _config(run: Path, problems: list[str]) -> dict:
    if not (run / "config.yaml").is_file():
        problems.append("config.yaml is missing" if run.is_dir() else "it has not begun")
        return {}
    try:
        config = read_run_config(run)
        if ideas := versions(run, names_in(config)):  # what they say, not where they lay
            return {**config, "ideas": ", ".join(ideas)}
        return {**config, "ideas": []} if config.get("ideas") else config
    except UserError as error:
        problems.append(f"config.yaml cannot be read: {reason(error)}")
        return {}


def _facts(run: Path, problems: list[str]) -> dict | None:
    path = run / "facts.json"
    if not path.is_file():
        return None
    try:
        facts = checked_facts(json.loads(path.read_text()))
    except (OSError, ValueError):
        facts = None
    if facts is None:
        problems.append("facts.json cannot be read")
    return facts


def checked_facts(facts: Any) -> dict | None:
    """What `gptstar.training.run_folder.write_facts` has written; None for anything else."""
    try:
        HeldOut(**facts["held_out"])
        return facts if isinstance(facts["tokenizer"], str) else None
    except (TypeError, KeyError):
        return None


def _tokenizer(run: Path) -> str | None:
    for folder in reversed(list_checkpoints(run)):
        try:
            return read_tokenizer(folder).fingerprint()
        except (UserError, KeyError, OSError):
            continue
    return None


def _environment(run: Path) -> dict[str, Any]:
    """Hardware and commits of every start, in order, and the command of the first."""
    try:
        entries = [entry for entry in json.loads((run / "environment.json").read_text()) if isinstance(entry, dict)]
    except (OSError, ValueError, TypeError):
        entries = []
    hardware = dict.fromkeys(_hardware(entry) for entry in entries)
    commits = dict.fromkeys(entry.get("commit") for entry in entries)
    return {
        "hardware": "; ".join(name for name in hardware if name) or None,
        "commit": ", ".join(name for name in commits if name) or None,
        "command": entries[0].get("command") if entries else None,
    }


def _hardware(entry: dict) -> str | None:
    device = entry.get("device")
    if device != "cpu":
        return device
    return cpu(entry.get("cpu"), entry.get("cores"))


def cpu(model: str | None, cores: int | None) -> str:
    """A processor in words."""
    return f"{model or 'CPU'}, {cores} cores" if cores else model or "CPU"
