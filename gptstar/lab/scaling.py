"""scaling.md, scaling.png and scaling.json of a scaling law."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gptstar.figure import new_figure, save_figure
from gptstar.files import replace_text
from gptstar.lab.law import Law, Point, find_law
from gptstar.lab.reading.runs import Run
from gptstar.lab.study import Interval

COLOURS = ("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#aa4499")


def write_law(runs: list[Run], hold_out: list[str], folder: Path) -> Law:
    """Fits the law to the runs' final losses, those of the variants in `hold_out` left out, and writes all three files.

    UserError as of `gptstar.lab.law.find_law`.
    """
    law = find_law(runs, hold_out)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "scaling.json", json.dumps(asdict(law), indent=1) + "\n")
    replace_text(folder / "scaling.md", _markdown(law))
    _draw(law, folder / "scaling.png")
    return law


def _markdown(law: Law) -> str:
    fitted = [point for point in law.points if not point.held_out]
    held_out = [point for point in law.points if point.held_out]
    lines = [
        "# Scaling law",
        "",
        f"L(N, D) = E + A / N^alpha + B / D^beta over {len(fitted)} runs: final held-out loss in nats a token, N "
        "trainable parameters (the tied embedding table once), D tokens trained on. "
        f"Runs are {100 * law.spread:.2f}% (standard deviation) around it.",
        "",
        "| | value | 95% interval |",
        "|---|---|---|",
        f"| E | {law.floor.value:.3f} | {_bounds(law.floor, '.3f')} |",
        f"| A | {law.scale_parameters.value:.4g} | {_bounds(law.scale_parameters, '.4g')} |",
        f"| alpha | {law.alpha.value:.3f} | {_bounds(law.alpha, '.3f')} |",
        f"| B | {law.scale_tokens.value:.4g} | {_bounds(law.scale_tokens, '.4g')} |",
        f"| beta | {law.beta.value:.3f} | {_bounds(law.beta, '.3f')} |",
        "",
        "The constants are known together much better than each alone: wide intervals here and narrow ones below are "
        "no contradiction.",
        *("", "![loss against parameters](scaling.png)", ""),
    ]
    if held_out:
        inside = sum(_inside(point) for point in held_out)
        lines += ["## What was held out", "", "| run | N | D | predicted | 95% interval | measured | error |"]
        lines += ["|---|---|---|---|---|---|---|", *(_row(point) for point in held_out)]
        lines += ["", f"{inside} of {len(held_out)} within the interval in which a single run should fall."]
        if law.other is not None:
            lines[-1] += (
                f" The mean error is {100 * law.other[1]:.2f}%; with N without the embedding table it would be "
                f"{100 * law.other[0]:.2f}%."
            )
    lines += ["", "## The best size for a budget", "", "C = 6 N D, which leaves out attention's own products.", ""]
    lines += ["| FLOPs | N | 95% | D | 95% | D / N | loss | 95% | |", "|---|---|---|---|---|---|---|---|---|"]
    for best in law.optima:
        sizes = f"{best.parameters.value:.3g} | {_bounds(best.parameters, '.2g')}"
        tokens = f"{best.tokens.value:.3g} | {_bounds(best.tokens, '.2g')}"
        loss = f"{best.loss.value:.3f} | {_bounds(best.loss, '.3f')}"
        ratio = f"{best.tokens.value / best.parameters.value:.1f}"
        beyond = "extrapolated" if best.beyond else ""
        lines.append(f"| {best.flops:.2g} | {sizes} | {tokens} | {ratio} | {loss} | {beyond} |")
    lines += [
        "",
        "Intervals are of a parametric bootstrap over runs: they say what other seeds might have given, not what is "
        "wrong with the law's form or with settings that suit one size better than another.",
        *("", "## Fitted runs", "", "| run | N | D | predicted | 95% interval | measured | error |"),
        *("|---|---|---|---|---|---|---|", *(_row(point) for point in fitted)),
    ]
    if law.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in law.notes)]
    return "\n".join(lines) + "\n"


def _row(point: Point) -> str:
    sizes = f"{point.parameters:,} | {point.tokens:,}"
    predicted = f"{point.predicted.value:.4f} | {_bounds(point.predicted, '.4f')}"
    return f"| {point.name} | {sizes} | {predicted} | {point.loss:.4f} | {100 * point.error:+.2f}% |"


def _bounds(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def _inside(point: Point) -> bool:
    low, high = point.predicted.low, point.predicted.high
    return low is not None and high is not None and low <= point.loss <= high


def _draw(law: Law, path: Path) -> None:
    """Loss against parameters for each budget in tokens with what the law says, and residuals; held out: stars."""
    figure = new_figure(10, 4.5)
    curves, rest = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = [point.parameters for point in law.points]
    n = np.geomspace(min(sizes) * 0.9, max(sizes) * 1.1, 100)
    for number, budget in enumerate(sorted({point.tokens for point in law.points})):
        colour = COLOURS[number % len(COLOURS)]
        points = sorted((p for p in law.points if p.tokens == budget), key=lambda point: point.parameters)
        curves.plot(n, law.loss(n, budget), color=colour, linewidth=1.2, label=f"{budget / 1e6:.3g}M tokens")
        bounds = [(p.predicted.low, p.predicted.high) for p in points]
        curves.fill_between(
            [p.parameters for p in points], *zip(*bounds, strict=True), color=colour, alpha=0.15, linewidth=0
        )
        for point in points:
            style: dict = {"marker": "*", "markersize": 13} if point.held_out else {"marker": "o", "markersize": 5}
            style |= {"color": colour, "linestyle": "", "markeredgecolor": "black", "markeredgewidth": 0.5}
            curves.plot(point.parameters, point.loss, **style)
            rest.plot(point.parameters, 100 * point.error, **style)
            if point.held_out and point.predicted.low is not None and point.predicted.high is not None:
                below, above = (
                    100 * (b / point.predicted.value - 1) for b in (point.predicted.low, point.predicted.high)
                )
                rest.vlines(point.parameters, below, above, color=colour, alpha=0.5)
    curves.set(ylabel="final held-out loss (nats/token)")
    curves.set_title("fitted (dots), held out (stars), 95% of single runs (bands)", fontsize=10)
    curves.legend(frameon=False, fontsize=8)
    rest.axhline(0, color="#888888", linewidth=0.9)
    rest.set(ylabel="measured over predicted, %", title="residuals")
    for axes in (curves, rest):
        axes.set(xscale="log", xlabel="parameters (millions)")
        axes.set_xticks(sorted(set(sizes)), [f"{size / 1e6:.3g}" for size in sorted(set(sizes))], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    save_figure(figure, path)
