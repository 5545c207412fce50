"""What compare.py can be told, and what it does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console

from gptstar.environment import command_line
from gptstar.errors import UserError
from gptstar.files import make_folder
from gptstar.lab.analysis import analyse
from gptstar.lab.reading.comparable import comparable
from gptstar.lab.reading.description import Description, find_description
from gptstar.lab.reading.find import find_runs
from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.variants import digest, variants
from gptstar.lab.report.log import add_entry
from gptstar.lab.report.markdown import verdict_lines
from gptstar.lab.report.write import write_report
from gptstar.lab.scaling import write_law
from gptstar.lab.speed import Speeds, measure, read_speeds, write_speeds
from gptstar.lab.study import Study
from gptstar.lab.transfer import write_transfer


@dataclass
class CompareConfig:
    """A comparison of runs.

    runs        run folders, folders of runs (studies, sweeps), wandb offline folders, CSV exports, globs
    baseline    what the others are compared with: a variant, or the folder of one of its runs; null: as the study says,
                or else the first
    output_dir  where the report goes; null: FOLDER/comparison of the study, or of the folder that all runs lie in
    title       of the report; null: the study's name
    measure     rounds in which the variants' speed is measured here, in turns; 0: what was measured last is read, from
                speed.json in output_dir. steps: that a variant takes a round
    columns     of foreign runs: {our name: theirs}, e.g. {validation_loss: val/ce}
    log         the title of an entry in traininglog.md; null: none. log_file: the log
    """

    runs: list[str] = MISSING
    baseline: str | None = None
    output_dir: str | None = None
    title: str | None = None
    measure: int = 0
    steps: int = 5
    columns: dict[str, str] = field(default_factory=dict)
    log: str | None = None
    log_file: str = "traininglog.md"

    def __post_init__(self) -> None:
        if self.measure < 0 or self.steps < 1:
            raise ValueError(f"measure={self.measure} must not be negative and steps={self.steps} at least 1")


def compare_runs(config: CompareConfig, console: Console) -> Study:
    """Reads the runs, decides, and writes the report; raises UserError before any work for what cannot be compared."""
    if config.log is not None and not config.log.strip():
        raise UserError('--log needs the title of the entry: --log "What was found"')
    if config.log and not Path(config.log_file).is_file():
        raise UserError(f"log_file={config.log_file} is not there: name the log that the entry goes into")
    about = find_description(config.runs)
    runs = find_runs(config.runs, config.columns or None)
    folder = Path(config.output_dir).expanduser() if config.output_dir else _usual_folder(config.runs)
    baseline = config.baseline
    study = analyse(runs, baseline, about, None, config.title)  # what cannot be compared is refused before measuring
    make_folder(folder)
    speeds = _measured(config, runs, study, folder, console) if config.measure else read_speeds(folder)
    study = analyse(runs, baseline, about, speeds, config.title, command_line())
    own, notes = _own_reports(about, runs, study, folder)
    study = replace(study, notes=[*study.notes, *notes])
    report = write_report(study, folder)
    for source, why in study.excluded.items():
        console.print(f"left out: {source}: {why}", markup=False, highlight=False, soft_wrap=True)
    for line in verdict_lines(study):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{report} and {report.with_suffix('.html')}", soft_wrap=True)
    if config.log:
        add_entry(study, config.log, folder, Path(config.log_file), own)
        console.print(f"logged in {config.log_file}")
    return study


def _own_reports(
    about: Description | None, runs: list[Run], study: Study, folder: Path
) -> tuple[list[Path], list[str]]:
    """What a study wants beside the comparison; a note for each that cannot be written, as of a study half done."""
    wanted = about.reports if about is not None else {}
    told = [run for run in runs if run.problem or run.source not in study.excluded]
    made, notes = [], []
    try:
        if "hold_out" in wanted:
            write_law(told, list(wanted["hold_out"]), folder)
            made.append(folder / "scaling.md")
    except UserError as error:
        notes.append(f"No scaling law: {error}.")
    try:
        if wanted.get("transfer"):
            made.append(write_transfer(told, folder))
    except UserError as error:
        notes.append(f"No table of transfer: {error}.")
    return made, notes


def _usual_folder(sources: list[str]) -> Path:
    paths = [Path(source).expanduser() for source in sources]
    if len(paths) == 1 and paths[0].is_dir():  # of a study, or of a run alone, which is not to replace its study's
        return paths[0] / "comparison"
    return Path(os.path.commonpath([path.absolute().parent for path in paths])) / "comparison"


def _measured(config: CompareConfig, runs: list[Run], study: Study, folder: Path, console: Console) -> Speeds:
    """In turns, one run's configuration a variant."""
    groups = comparable(variants(runs), study.baseline).kept
    configs = {name: Path(some[0].source) / "config.yaml" for name, some in groups.items()}
    foreign = [name for name, path in configs.items() if not path.is_file()]
    if foreign:
        raise UserError(
            f"measure={config.measure}: {foreign[0]} has no config.yaml to be measured by: leave measure out"
        )
    speeds = measure(configs, config.measure, config.steps, lambda text: console.print(text, highlight=False))
    speeds = replace(speeds, settings={name: digest(some[0].config) for name, some in groups.items()})
    write_speeds(speeds, folder)
    return speeds
