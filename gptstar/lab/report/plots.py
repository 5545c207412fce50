"""PNGs of a study: losses against tokens, time and FLOPs, and the effects of its variants."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptstar.figure import new_figure, save_figure
from gptstar.lab.report.look import Axis, Style, axes, styles
from gptstar.lab.report.tables import interval_text
from gptstar.lab.study import Curve, Study, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"better": ("#0b5fa5", "o"), "worse": ("#a8480a", "s")}  # of words; others are grey diamonds
HIDDEN = 0.1  # of an axis: what is lost on the way down from the first loss would flatten all that matters
LABEL = 38  # characters of a name before it is folded


def draw_plots(study: Study, folder: Path) -> dict[str, str]:
    """{file name: caption} of the PNGs it writes into a folder: none where there is nothing to draw."""
    made = {}
    for axis in axes(study):
        name = f"loss_{axis.name.lower()}.png"
        save_figure(_losses(study, axis), folder / name)
        made[name] = f"Validation loss against {axis.name}, mean over seeds with 95% bands"
    if any(variant.effect for variant in study.variants):
        save_figure(_effects(study), folder / "effects.png")
        made["effects.png"] = f"Difference from {study.baseline} in percent, with 95% intervals (left: better)"
    return made


def _label(name: str, width: int = LABEL) -> str:
    """On lines of bearable length; $ would begin a formula."""
    return "\n".join(textwrap.wrap(name, width) or [name]).replace("$", r"\$")


def _losses(study: Study, axis: Axis) -> Figure:
    shown = [(variant, variant.curves[axis.key]) for variant in study.variants if axis.key in variant.curves]
    look = styles(study)
    names = [_label(variant.name) for variant, _ in shown]
    long = len(names) > 4 or any(len(name) > 20 for name in names)
    figure = new_figure(8, 4.5 + 0.08 * sum(1 + name.count("\n") for name in names) * long)
    panel = figure.add_subplot()
    for variant, curve in shown:
        _draw_curve(panel, variant, curve, axis, look[variant.name])
    panel.set(xlabel=axis.label, ylabel=f"validation loss ({study.unit})", title=_label(study.title, 80))
    panel.title.set_fontsize(11)
    panel.set_xlim(left=0)
    panel.set_ylim(_limits([curve for _, curve in shown]))
    panel.grid(alpha=0.25)
    where: dict = {"loc": "outside lower center", "ncols": 2} if long else {"loc": "outside upper right", "ncols": 4}
    figure.legend(frameon=False, fontsize=8, handlelength=4, **where)
    return figure


def _draw_curve(panel, variant: Variant, curve: Curve, axis: Axis, style: Style) -> None:
    x = np.array(curve.x) / axis.divisor
    if curve.low is not None and curve.high is not None:
        panel.fill_between(x, curve.low, curve.high, color=style.light, alpha=0.15, linewidth=0)
    points = np.array(style.dash) / 1.5  # matplotlib counts in widths of the line
    dash = (0, tuple(points)) if style.dash else "-"
    panel.plot(x, curve.mean, color=style.light, linestyle=dash, linewidth=1.5, label=_label(variant.name))


def _limits(curves: list[Curve]) -> tuple[float, float]:
    """Of the losses after the first tenth of the axis, with a margin: the page's charts do the same."""
    start = HIDDEN * max(curve.x[-1] for curve in curves if curve.x)
    found: list[float] = []
    for curve in curves:
        sides = [side for side in (curve.mean, curve.low, curve.high) if side is not None]
        found += [y for side in sides for x, y in zip(curve.x, side, strict=True) if x >= start and np.isfinite(y)]
    if not found:
        return 0, 1
    low, high = min(found), max(found)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _effects(study: Study) -> Figure:
    shown = [variant for variant in study.variants if variant.effect]
    names = [_label(variant.name) for variant in shown]
    figure = new_figure(8, 1.4 + 0.45 * len(shown) + 0.12 * sum(name.count("\n") for name in names))
    panel = figure.add_subplot()
    panel.axvline(0, color="#222222", linewidth=1)
    for place, variant in enumerate(shown):
        effect, (colour, marker) = variant.effect, MARKS.get(variant.word, ("#555555", "D"))
        if effect is None:
            continue
        low, high = (effect.value if bound is None else bound for bound in (effect.low, effect.high))
        panel.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        panel.plot([effect.value], [place], marker=marker, color=colour, markersize=6)
        text = f"{interval_text(effect, 2, sign=True)}  {variant.word}"
        above: dict = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8}
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        panel.annotate(text, (effect.value, place), color=colour, bbox=paper, **above)
    panel.set_yticks(range(len(shown)), names, fontsize=8)
    panel.set_ylim(len(shown) - 0.5, -0.7)
    panel.margins(x=0.25)
    panel.set_xlabel(f"difference from {study.baseline} in {study.metric.replace('_', ' ')} (%), left: better")
    panel.grid(axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    return figure
