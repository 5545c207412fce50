"""Runs and published models side by side: python -m gptstar.report results=[RUN1,RUN2] baselines=[gpt_neo_125m]"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from gptstar.configuration import run_door
from gptstar.evaluation.bar_chart import draw_accuracies
from gptstar.evaluation.baselines import BASELINES, baseline_rows
from gptstar.evaluation.comparison import compare
from gptstar.evaluation.report import (
    comparison_markdown,
    comparison_tables,
    draw_sweeps,
    find_results,
    remarks,
    write_markdown,
)
from gptstar.evaluation.results import read_results
from gptstar.files import make_folder


@dataclass
class ReportConfig:
    """What is compared.

    results     run folders, folders with results.json or perplexity.json, or such files
    baselines   published models, or all
    reference   the line that differences are told from, by its label or a baseline's name; null: the first of results
    output_dir  where comparison.md and its plots go
    """

    results: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    reference: str | None = None
    output_dir: str = "evaluations"

    def __post_init__(self) -> None:
        if not self.results and not self.baselines:
            raise ValueError(
                f"there is nothing to compare: name results=[RUN], baselines=[{','.join(BASELINES)}] or both"
            )


def report(config: ReportConfig, console: Console | None = None) -> Path:
    """Writes comparison.md, and results.md beside each of the results; returns the former's path."""
    files = [path for source in config.results for path in find_results(source)]
    rows = [row for path in files for row in read_results(path)] + baseline_rows(config.baselines)
    comparison = compare(rows, config.reference)
    folder = Path(config.output_dir).expanduser()
    make_folder(folder)
    for path in files:
        write_markdown(path)
    plots = draw_sweeps(rows, folder / "contexts")
    chart = draw_accuracies(comparison, folder / "accuracies.png")
    target = folder / "comparison.md"
    target.write_text(comparison_markdown(comparison, plots, chart), encoding="utf-8")
    if console is not None:
        for table in comparison_tables(comparison, console.width):
            console.print(table)
        for remark in remarks(comparison):
            console.print(remark, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{target} has the rest", highlight=False, markup=False)
    return target


if __name__ == "__main__":

    def main(config: ReportConfig) -> None:
        """The table, and where the files are."""
        report(config, Console())

    run_door("report", ReportConfig, main)
