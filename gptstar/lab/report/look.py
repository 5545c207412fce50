"""What variants and axes look like, in PNGs and on the page alike."""

from __future__ import annotations

from dataclasses import dataclass

from gptstar.lab.study import Study

# The baseline's, then the others'. Chosen by search: any two differ by 20 or more in CIELAB as seen with each of the
# three colour vision deficiencies (Machado et al. 2009), and all by a contrast of 3 or more from the page.
LIGHT = ("#222222", "#0a9ccc", "#ad2b6c", "#ad8409", "#044c04", "#6a6aeb", "#eb6a6a", "#3b0acc", "#52056b")
DARK = ("#e0e0e0", "#33cdff", "#cc2953", "#ffc20d", "#bbffa6", "#8080ff", "#e60b0b", "#7f33ff", "#926399")
# Lengths of ink and gap in points; nothing: a whole line.
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (),
    (7, 2.5),
    (2, 2),
    (8, 2, 2, 2),
    (12, 3),
    (4, 4),
    (12, 2, 2, 2, 2, 2),
    (1.5, 3),
)
TOKENS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
SECONDS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
FLOPS = ((1e18, "exa"), (1e15, "peta"), (1e12, "tera"), (1e9, "giga"), (1e6, "mega"))


@dataclass(frozen=True)
class Style:
    """Of a variant: its colour on white and on a dark page, and its dashes."""

    light: str
    dark: str
    dash: tuple[float, ...]


@dataclass(frozen=True)
class Axis:
    """What losses are drawn against.

    key      its name in a variant's curves; name: in words; label: with the unit
    unit     behind a figure; divisor: what figures are divided by to be in it
    """

    key: str
    name: str
    label: str
    unit: str
    divisor: float


def styles(study: Study) -> dict[str, Style]:
    """By variant; the first nine differ in colour, up to 64 in colour and dashes together."""
    others = [variant.name for variant in study.variants if variant.name != study.baseline]
    found = {study.baseline: Style(LIGHT[0], DARK[0], DASHES[0])}
    for number, name in enumerate(others):
        colour, dash = 1 + number % 8, 1 + (number + number // 8) % 8
        found[name] = Style(LIGHT[colour], DARK[colour], DASHES[dash])
    return found


def axes(study: Study) -> list[Axis]:
    """Those that any variant has a curve on, in units that suit the longest."""
    found = []
    for key, name, label, unit, units in (
        ("tokens", "tokens", "tokens ({}s)", "{} tokens", TOKENS),
        ("seconds", "time", "training time ({})", "{}", SECONDS),
        ("flops", "FLOPs", "training compute ({}FLOPs)", "{}FLOPs", FLOPS),
    ):
        curves = [variant.curves[key] for variant in study.variants if key in variant.curves]
        longest = max((x for curve in curves for x in curve.x), default=0)
        if longest > 0:
            divisor, word = next(((size, word) for size, word in units if longest >= 2 * size), units[-1])
            found.append(Axis(key, name, label.format(word), unit.format(word), divisor))
    return found
