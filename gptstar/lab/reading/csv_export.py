"""Runs in a CSV file: what wandb's web page exports for a chart, or a long table.

A chart      Step (or tokens), and for each run "RUN - validation_loss", beside it ...__MIN and ...__MAX
A long table a row a measurement: run, step, tokens, validation_loss, and where they are known seed, variant, seconds
             (training time until then), loss, bits_per_byte, tokens_per_step; columns with a dot in their name, such
             as trainer.batch_size, are the run's configuration
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptstar.errors import UserError
from gptstar.lab.reading.columns import find_columns, foreign_rows, number
from gptstar.lab.reading.read import ending
from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.series import curves
from gptstar.lab.reading.settings import budget, seed_of, size, tokens_per_step

JOINT = " - "
EXTREMES = ("__MIN", "__MAX")


def read_csv(
    path: str | Path, columns: Mapping[str, str] | None = None, configs: Mapping[str, dict] | None = None
) -> list[Run]:
    """The runs of a CSV file, in its order.

    columns   {ours: theirs} for names that are not known by themselves
    configs   {run: its configuration}, which gives tokens a step where no column does

    Raises UserError for a file that cannot be read and for columns that say too little.
    """
    path = Path(path).expanduser()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name for name in reader.fieldnames or [] if name]
            table = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): export it again") from error
    charted = _charted(names, columns)
    found = find_columns(names, None if charted else columns)
    timed = "step" in found or "tokens" in found
    measured = "validation_loss" in found or "final_loss" in found
    if not charted and not ("run" in found and timed and measured):
        raise UserError(
            f"{path} has the columns {', '.join(names) or '(none)'}: needed are either run, step and validation_loss "
            "(tokens, seed, variant, seconds, loss, bits_per_byte where known), or Step and "
            "'RUN - validation_loss' for each run, as wandb exports a chart"
        )
    try:
        told = _of_chart(table, charted, found) if charted else _of_long_table(table, found, _settings(names, found))
    except ValueError as error:
        raise UserError(f"{path} {error}: mend it, or export it again") from error
    named = _seeds_in_names(list(told))
    runs = []
    for name, each in told.items():
        config = each.get("config") or dict((configs or {}).get(name, {}))
        variant, seed = named.get(name, (None, None)) if "seed" not in each and "variant" not in each else (None, None)
        runs.append(_run(path, name, each, config, each.get("variant", variant), each.get("seed", seed)))
    return runs


def _settings(names: list[str], found: dict[str, str]) -> list[str]:
    """The columns of the configuration; none that another one lies below."""
    dotted = [name for name in names if "." in name and name not in found.values()]
    return [name for name in dotted if not any(other.startswith(f"{name}.") for other in dotted)]


def _charted(names: list[str], columns: Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
    """{column: (run, our name)} of an exported chart."""
    found = {}
    for name in names:
        run, joint, metric = name.rpartition(JOINT)
        if joint and not metric.endswith(EXTREMES):
            known = {theirs: ours for ours, theirs in (columns or {}).items()}
            ours = known.get(metric) or next(iter(find_columns([metric])), None)
            if ours is not None:
                found[name] = (run, ours)
    return found


def _of_chart(
    table: list[dict], charted: dict[str, tuple[str, str]], found: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The rows of each run. The first column is the step or, where the chart was drawn so, the tokens."""
    runs: dict[str, dict[str, Any]] = {run: {"rows": []} for run, _ in charted.values()}
    for line, cells in enumerate(table, 2):
        axis = {"step": line - 1, **_numbers(cells, {k: v for k, v in found.items() if k in ("step", "tokens")}, line)}
        for run, told in runs.items():
            own = _numbers(cells, {ours: name for name, (whose, ours) in charted.items() if whose == run}, line)
            if any(value is not None for value in own.values()):
                told["rows"].append({**axis, **own})
    return runs


def _of_long_table(table: list[dict], found: dict[str, str], settings: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of each run, its configuration and, where there are such columns, variant and seed."""
    runs: dict[str, dict[str, Any]] = {}
    texts = ("run", "variant", "seed")
    for line, cells in enumerate(table, 2):
        name = cells[found["run"]]
        if not name:
            continue
        told = runs.setdefault(name, {"rows": [], "config": _config(cells, settings)})
        if cells.get(found.get("variant", "")):
            told["variant"] = cells[found["variant"]]
        if "seed" in found and (seed := _numbers(cells, {"seed": found["seed"]}, line)["seed"]) is not None:
            told["seed"] = int(seed)
        values = _numbers(cells, {ours: theirs for ours, theirs in found.items() if ours not in texts}, line)
        told["rows"].append({"step": line - 1, **values} if "step" not in found else values)
    return runs


def _numbers(cells: dict, names: dict[str, str], line: int) -> dict[str, float | int | None]:
    """{our name: number} of a line; ValueError for a cell that holds something else."""
    values = {}
    for ours, theirs in names.items():
        try:
            values[ours] = number(cells[theirs])
            if ours in ("step", "tokens", "seed") and values[ours] is not None:
                int(values[ours])  # type: ignore[arg-type]
        except (ValueError, OverflowError) as error:
            raise ValueError(f"line {line}: {theirs}={cells[theirs]!r} is no number") from error
    return values


def _config(cells: dict, settings: list[str]) -> dict:
    """Nested, from columns such as trainer.batch_size."""
    config: dict[str, Any] = {}
    for name in settings:
        *above, last = name.split(".")
        place = config
        for key in above:
            place = place.setdefault(key, {})
        try:
            place[last] = number(cells[name])
        except ValueError:
            place[last] = cells[name]
    return config


def _seeds_in_names(names: list[str]) -> dict[str, tuple[str, int]]:
    """{run: (variant, seed)} for names that end in a seed: NAME-seed3, NAME_s3, or NAME-0, NAME-1, NAME-2, which only
    count as seeds where all from 0 are there.
    """
    told, counted = {}, {}
    for name in names:
        if match := re.fullmatch(r"(.+?)[-_ ](?:seed[-_=]?|s)(\d+)", name):
            told[name] = (match[1], int(match[2]))
        elif match := re.fullmatch(r"(.+)-(\d+)", name):
            counted[name] = (match[1], int(match[2]))
    for name, (stem, seed) in counted.items():
        numbers = sorted(number for other, number in counted.values() if other == stem)
        if len(numbers) > 1 and numbers == list(range(len(numbers))):
            told[name] = (stem, seed)
    return told


def _run(path: Path, name: str, told: dict, config: dict, variant: str | None, seed: int | None) -> Run:
    wanted = budget(config)
    rows, problems = foreign_rows(told["rows"], tokens_per_step(config))
    found = curves(rows)
    if not problems:
        problems = ending(found, wanted[0] if wanted else None)
    parameters, flops = size(config)
    return Run(
        source=f"{path}: {name}",
        name=name,
        config=config,
        seed=seed if seed is not None else seed_of(config),
        variant=variant,
        budget=wanted[1] if wanted else None,
        parameters=parameters,
        flops_per_token=flops,
        problem=problems[0] if problems else None,
        **found,
    )
