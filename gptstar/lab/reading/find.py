"""Runs from wherever they are: run folders, studies and sweeps, wandb folders, CSV exports, shell-style globs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path

from gptstar.errors import UserError
from gptstar.lab.reading.csv_export import read_csv
from gptstar.lab.reading.description import read_study
from gptstar.lab.reading.metrics import is_run
from gptstar.lab.reading.read import read_run
from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.wandb_offline import begun, find_wandb, read_wandb, wandb_id

DEPTH = 3
WANTED = (
    f"name a run folder, a folder with runs in it (at most {DEPTH} deep), a wandb folder, a .csv file or a glob of such"
)


def find_runs(
    sources: Sequence[str | Path],
    columns: Mapping[str, str] | None = None,
    configs: Mapping[str, dict] | None = None,
) -> list[Run]:
    """All runs that the sources hold, in their order, each once; a folder's in its study's order, else by name.

    columns, configs   of foreign runs: see `read_wandb` and `read_csv`

    A run that its study names and that has not begun is there too, with that problem. Where a run's folder and its
    wandb files are both reached, the folder is read, which knows more. Raises UserError for a source without runs.
    """
    if not sources:
        raise UserError(f"no runs were named: {WANTED}")
    places: dict[Path, Path] = {}  # by the resolved path
    for source in sources:
        for place in _places(str(source)):
            places.setdefault(place.resolve(), place)
    logs: dict[str, list[Path]] = {}
    for place in places.values():
        if place.suffix == ".wandb":
            logs.setdefault(wandb_id(place), []).append(place)
    for place in places.values():
        if place.suffix not in (".wandb", ".csv"):
            logs.pop(_id_of(place), None)
    runs = []
    for place in places.values():
        if place.suffix == ".csv":
            runs += read_csv(place, columns, configs)
        elif place.suffix == ".wandb":
            if files := logs.pop(wandb_id(place), None):
                runs.append(read_wandb(sorted(files, key=begun), columns))
        else:
            runs.append(read_run(place))
    return runs


def _places(source: str) -> list[Path]:
    """The run folders, .wandb and .csv files that a source leads to."""
    path = Path(source).expanduser()
    if has_magic(source) and not path.exists():
        matches = [Path(match) for match in sorted(glob(str(path)), key=_natural)]
        found = [place for match in matches for place in _below(match, DEPTH)]
        if not found:
            raise UserError(f"{source} matches {len(matches) or 'no'} files and no run: {WANTED}")
        return found
    if not path.exists():
        raise UserError(f"{source}: no such file or folder (from {Path.cwd()}): {WANTED}")
    found = list(_below(path, DEPTH))
    if not found:
        raise UserError(f"{source} holds no run: {WANTED}")
    return found


def _below(path: Path, depth: int) -> Iterator[Path]:
    if path.is_file():
        if path.suffix in (".wandb", ".csv"):
            yield path
        return
    if is_run(path):
        yield path
        return
    logs = find_wandb(path)
    yield from logs
    if logs or not depth:
        return
    named = read_study(path)["runs"]
    for name in named:
        yield path / name
    if path.is_dir():
        others = [p for p in path.iterdir() if p.is_dir() and p.name not in named and not p.name.startswith(".")]
        for folder in sorted(others, key=lambda p: _natural(p.name)):
            yield from _below(folder, depth - 1)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _id_of(run: Path) -> str:
    """The name that a run folder has in wandb."""
    try:
        return (run / "wandb_id").read_text().strip()
    except OSError:
        return ""
