"""report.html: one file that needs nothing else, with charts to look into."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from gptstar.lab.report.look import axes, styles
from gptstar.lab.report.plots import HIDDEN
from gptstar.lab.report.tables import Table, interval_text, tables
from gptstar.lab.study import Study, Variant

PAGE = Path(__file__).with_name("page")
STEPS = (1, 2, 5)  # of ticks, times a power of ten


def report_html(study: Study) -> str:
    """The page. Tables and effects are there without JavaScript; curves, sorting and the theme's switch need it."""
    made = tables(study)
    details = "".join(
        f"<details><summary>{escape(each.title)}</summary>{_table(each)}</details>" for each in made if each.detail
    )
    body = [
        _section("Verdicts", _verdicts(study)),
        *(_section(each.title, _table(each)) for each in made[:1]),
        _effects(study),
        (PAGE / "chart.html").read_text(encoding="utf-8") if axes(study) else "",
        *(_section(each.title, _table(each)) for each in made[1:] if not each.detail),
        _section("Runs left out", _pairs(study.excluded)),
        _section("Notes", "".join(f"<li>{escape(note)}</li>" for note in study.notes), around="ul"),
        _section("Runs and configurations", details),
        _section("How it was made", _origin(study)),
    ]
    return Template((PAGE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(study.title),
        why=f"<p>{escape(study.why)}</p>" if study.why else "",
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script=(PAGE / "report.js").read_text(encoding="utf-8"),
        body="\n".join(part for part in body if part),
        data=_inline(study),
    )


def _inline(study: Study) -> str:
    """The study as JSON that no content can end early: a browser reads a script up to the first "</script"."""
    look = styles(study)
    page = {
        "study": asdict(study),
        "unit": study.unit,
        "look": [asdict(look[variant.name]) for variant in study.variants],
        "axes": [asdict(axis) for axis in axes(study)],
        "hidden": HIDDEN,
    }
    text = json.dumps(_finite(page), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finite(value):
    """The same with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _section(title: str, content: str, around: str = "div") -> str:
    return f"<section><h2>{escape(title)}</h2><{around}>{content}</{around}></section>" if content else ""


def _table(table: Table) -> str:
    kinds = [' class="number"' if numeric else "" for numeric in table.numeric]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(table.header, kinds, strict=True))
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    label = escape(table.title, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">{escape(table.note)}</p>'
    )


def _verdicts(study: Study) -> str:
    others = [variant for variant in study.variants if variant.name != study.baseline]
    if not others:
        return f"<p>Only {escape(study.baseline)} is here: there is nothing to compare it with.</p>"
    items = []
    for variant in others:
        why = f'<p class="why">{escape(variant.why)}</p>' if variant.why else ""
        items.append(
            f'<li data-word="{escape(variant.word)}"><span class="word">{escape(variant.word)}</span>'
            f"<p><strong>{escape(variant.name)}</strong>: {escape(variant.verdict)}</p>{why}</li>"
        )
    return f'<ul class="verdicts">{"".join(items)}</ul>'


def _effects(study: Study) -> str:
    """The forest plot: a line a variant, in percent of the width, so that it fits any."""
    shown = [variant for variant in study.variants if variant.effect and math.isfinite(variant.effect.value)]
    if not shown:
        return ""
    low, high, ticks, digits = _range(shown)
    place = [f"{100 * (tick - low) / (high - low):.2f}%" for tick in ticks]
    grid = "".join(
        f'<line class="{"grid" if tick else "zero"}" x1="{x}" x2="{x}" y1="-20%" y2="120%"/>'
        for tick, x in zip(ticks, place, strict=True)
    )
    rows = []
    for variant in shown:
        effect = variant.effect
        assert effect is not None
        ends = [effect.value if b is None or not math.isfinite(b) else b for b in (effect.low, effect.high)]
        left, right, middle = (f"{100 * (x - low) / (high - low):.2f}%" for x in (*ends, effect.value))
        text = interval_text(effect, 2, sign=True)
        rows.append(
            f'<div class="name">{escape(variant.name)}</div>'
            f'<svg data-word="{escape(variant.word)}" role="img" aria-label="{text} percent">{grid}'
            f'<line class="whisker" x1="{left}" x2="{right}" y1="50%" y2="50%"/>'
            f'<circle class="mark" cx="{middle}" cy="50%" r="6"/></svg>'
            f'<div class="value" data-word="{escape(variant.word)}">{text} <span class="word">'
            f"{escape(variant.word)}</span></div>"
        )
    labels = "".join(f'<text x="{x}" y="18">{t:+.{digits}f}</text>' for t, x in zip(ticks, place, strict=True) if t)
    zero = place[ticks.index(0)]
    labels += f'<text x="{zero}" y="18">0</text>'
    rows.append(f'<div class="space"></div><svg aria-hidden="true">{labels}</svg><div class="space"></div>')
    note = (
        f'<p class="note">Difference in final loss from {escape(study.baseline)} in percent, with 95% confidence '
        "intervals. Left of 0 is better; an interval that holds 0 leaves it open.</p>"
    )
    return f'<section id="effects"><h2>Effects</h2><div class="effects">{"".join(rows)}</div>{note}</section>'


def _range(shown: list[Variant]) -> tuple[float, float, list[float], int]:
    """Ends of the axis, ticks between them (0 is one), and the digits that these need."""
    found = [0.0]
    for variant in shown:
        effect = variant.effect
        assert effect is not None
        found += [x for x in (effect.value, effect.low, effect.high) if x is not None and math.isfinite(x)]
    width = max(found) - min(found) or 1.0
    low, high = min(found) - 0.08 * width, max(found) + 0.08 * width
    power = math.floor(math.log10((high - low) / 5))
    step = next((n * 10**power for n in STEPS if (high - low) / (n * 10**power) <= 6), 10.0 ** (power + 1))
    ticks = [0.0 if n == 0 else n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return low, high, ticks, max(0, -math.floor(math.log10(step) + 1e-9))


def _pairs(pairs: dict[str, str], code: bool = False) -> str:
    mark = "code" if code else "span"
    items = "".join(f"<dt>{escape(k)}</dt><dd><{mark}>{escape(v)}</{mark}></dd>" for k, v in pairs.items())
    return f"<dl>{items}</dl>" if items else ""


def _origin(study: Study) -> str:
    commands = {"trained with": study.training_command, "compared with": study.command}
    others = {"commits": ", ".join(study.commits), "hardware": ", ".join(study.hardware)}
    lists = [_pairs({k: v for k, v in pairs.items() if v}, pairs is commands) for pairs in (commands, others)]
    return "".join(lists) + '<p class="note">All figures, as plain data, are in study.json beside this page.</p>'
