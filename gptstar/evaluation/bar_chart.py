"""Accuracies as bars, with standard errors; published ones hatched."""

from __future__ import annotations

from pathlib import Path

from gptstar.evaluation.comparison import Column, Comparison
from gptstar.figure import COLOURS, new_figure, save_figure

HATCHES = ("///", "...", "\\\\\\", "xxx", "|||", "---", "ooo", "+++")


def draw_accuracies(comparison: Comparison, path: Path) -> Path | None:
    """PNG of every share of documents in a comparison; None where there is none."""
    columns = [column for column in comparison.columns if column.percent]
    entries = [entry for entry in comparison.entries if any(column in entry.cells for column in columns)]
    if not columns:
        return None
    places: dict[tuple[int, Column], float] = {}
    ticks, bottom = [], 0.0
    for column in columns:
        there = [number for number, entry in enumerate(entries) if column in entry.cells]
        places |= {(number, column): bottom + place for place, number in enumerate(there)}
        ticks.append(bottom + (len(there) - 1) / 2)
        bottom += len(there) + 1
    figure = new_figure(9, 0.2 * bottom + 1.2 + 0.1 * len(entries))
    axes = figure.add_subplot()
    measured = [entry for entry in entries if not entry.published]
    for number, entry in enumerate(entries):
        found = [(places[number, column], entry.cells[column]) for column in columns if column in entry.cells]
        if entry.published:
            style: dict = {"color": "#e4e4e4", "hatch": HATCHES[number % len(HATCHES)]}
        else:
            style = {"color": COLOURS[measured.index(entry) % len(COLOURS)]}
        axes.barh(
            [y for y, _ in found],
            [100 * cell.value for _, cell in found],
            height=0.85,
            edgecolor="#888888",
            linewidth=0.5,
            label=f"{entry.label} (published)" if entry.published else entry.label,
            **style,
        )
        for y, cell in found:
            value, error = 100 * cell.value, 100 * (cell.stderr or 0)
            if error:
                axes.errorbar(value, y, xerr=error, ecolor="#222222", elinewidth=1, capsize=2)
            end = (value + error, y)
            axes.annotate(f"{value:.1f}", end, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(ticks, [column.title.removesuffix(" ↑").replace(" %", "") for column in columns])
    axes.set_ylim(bottom - 1.2, -0.8)
    axes.margins(x=0.07)
    axes.set_xlabel("% of documents, ± one standard error where it is known")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)
    return path
