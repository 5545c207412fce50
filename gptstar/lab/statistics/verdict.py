"""What a difference means, in words."""

from __future__ import annotations

from math import ceil, log10

from gptstar.lab.statistics.differences import MOST_SEEDS, Difference
from gptstar.lab.statistics.intervals import ALPHA


def word(difference: Difference) -> str:
    """better, worse, no difference seen, cannot say."""
    if difference.p is None:
        return "cannot say"
    if difference.p >= ALPHA:
        return "no difference seen"
    return "better" if difference.effect.value < 0 else "worse"


def verdict(
    name: str,
    baseline: str,
    difference: Difference,
    more: int | None = None,
    percent: float = 0.5,
    unit: str = "loss",
) -> str:
    """In a sentence or three: whether the variant is better, by how much, and what more seeds would show.

    more   what `more_seeds` says of a difference of so many percent; unit: of the effect, loss or bits per byte
    """
    effect = difference.effect
    if difference.p is None or effect.low is None or effect.high is None:
        return f"Cannot say: {effect.value:+.1f}% {unit} against {baseline}, but {difference.remark}."
    digits = max(1, min(3, ceil(-log10(max(effect.high - effect.low, 1e-9) / 2))))

    def show(value: float, sign: str = "+") -> str:
        return f"{value:{sign}.{digits}f}%"

    if difference.p < ALPHA:
        bounds = (effect.low, effect.high) if effect.value > 0 else (-effect.high, -effect.low)
        sentence = (
            f"{word(difference).capitalize()} than {baseline}: {show(abs(effect.value), '')} "
            f"{'higher' if effect.value > 0 else 'lower'} {unit} (95% interval {show(bounds[0], '')} to "
            f"{show(bounds[1], '')}), {_p(difference.p)}, {difference.test}."
        )
    else:
        sentence = (
            f"No difference from {baseline} seen: {show(effect.value)} {unit} (95% interval {show(effect.low)} to "
            f"{show(effect.high)}), {_p(difference.p)}, {difference.test}; it is hardly larger than "
            f"{show(max(-effect.low, effect.high), '')} either way."
        )
    remark = f" {difference.remark[0].upper()}{difference.remark[1:]}." if difference.remark else ""
    return sentence + remark + _seeds(name, baseline, more, percent)


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _seeds(name: str, baseline: str, more: int | None, percent: float) -> str:
    if more is None:
        return ""
    if not more:
        return f" These seeds would show a difference of {percent:g}% four times in five."
    count = f"more than {MOST_SEEDS} more seeds" if more > MOST_SEEDS else f"{more} more seed{'s' * (more > 1)}"
    return f" To see a difference of {percent:g}% four times in five, {name} and {baseline} need {count} each."
