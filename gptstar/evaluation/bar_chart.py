"""Accuracies as bars, with standard errors; published ones hatched."""

from __future__ import annotations

from pathlib import Path

from gptstar.evaluation.comparison import Column, Comparison
from gptstar.evaluation.contexts import COLOURS


def draw_accuracies(comparison: Comparison, path: Path) -> Path | None:
    """PNG of every share of documents in a comparison; None where there is none."""
    columns = [column for column in comparison.columns if column.percent]
    entries = [entry for entry in comparison.entries if any(column in entry.cells for column in columns)]
    if not columns or not entries:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 0.22 * len(columns) * (len(entries) + 1) + 1.6
    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    step = len(entries) + 1
    measured = [entry for entry in entries if not entry.published]
    for number, entry in enumerate(entries):
        there = [(place, entry.cells[column]) for place, column in enumerate(columns) if column in entry.cells]
        where = [place * step + number for place, _ in there]
        values = [100 * cell.value for _, cell in there]
        colour = COLOURS[measured.index(entry) % len(COLOURS)] if not entry.published else "#dddddd"
        label = f"{entry.label} (published)" if entry.published else entry.label
        hatch = HATCHES[number % len(HATCHES)] if entry.published else None
        axes.barh(
            where, values, height=0.85, color=colour, edgecolor="#666666", linewidth=0.5, hatch=hatch, label=label
        )
        errors = [100 * (cell.stderr or 0) for _, cell in there]
        axes.errorbar(values, where, xerr=errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        for y, value, error in zip(where, values, errors, strict=True):
            axes.annotate(
                f"{value:.1f}", (value + error, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_yticks([place * step + (len(entries) - 1) / 2 for place in range(len(columns))])
    axes.set_yticklabels([_short(column) for column in columns])
    axes.invert_yaxis()
    axes.set_xlabel("% of documents (bars: ± one standard error, where it is known)")
    axes.margins(x=0.08)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    return path


HATCHES = ("///", "...", "\\\\\\", "xxx", "|||", "---", "ooo", "+++")


def _short(column: Column) -> str:
    return column.title.removesuffix(" ↑").replace(" %", "").replace(" (lm-eval)", "")
