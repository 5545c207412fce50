"""Means and ratios with their 95% intervals, by Student's t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from gptstar.errors import UserError
from gptstar.lab.study import Curve, Interval, Line

ALPHA = 0.05


def interval(values: Sequence[float]) -> Interval:
    """Mean and its interval; no bounds with one value."""
    if not len(values):
        raise UserError("there is no value to take the mean of: name at least one run")
    data = np.asarray(values, dtype=np.float64)
    mean, half = _mean_and_half(data)
    return Interval(float(mean)) if half is None else Interval(float(mean), float(mean - half), float(mean + half))


def band(lines: Sequence[Line]) -> Curve:
    """Mean of several seeds' lines and its pointwise band, where all of them have been; x ascend in every line.

    At the points of the line that has fewest, which are those of all lines where they share them; elsewhere lines are
    interpolated.
    """
    start, end = max(line.x[0] for line in lines), min(line.x[-1] for line in lines)
    if start > end:
        names = ", ".join(line.name for line in lines)
        raise UserError(f"the curves of {names} have no x in common, so they have no mean: leave one out")
    fewest = np.asarray(min(lines, key=lambda line: len(line.x)).x, dtype=np.float64)
    grid = np.union1d(fewest[(fewest >= start) & (fewest <= end)], [start, end])
    mean, half = _mean_and_half(np.array([np.interp(grid, line.x, line.y) for line in lines]))
    if half is None:
        return Curve(grid.tolist(), mean.tolist(), None, None, list(lines))
    return Curve(grid.tolist(), mean.tolist(), (mean - half).tolist(), (mean + half).tolist(), list(lines))


def speed_ratio(variant: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The variant's speed as a multiple of the baseline's, from rounds in which both were measured in turns.

    Paired by round, so that what slows a whole round (a busy machine) cancels; the mean of log ratios. No bounds with
    one round.
    """
    if len(variant) != len(baseline):
        raise UserError(
            f"speeds cannot be paired: {len(variant)} rounds of the variant, {len(baseline)} of the baseline; measure "
            "both in every round"
        )
    return exponential(interval(np.log(np.asarray(variant, dtype=np.float64) / np.asarray(baseline)).tolist()))


def product(*ratios: Interval) -> Interval:
    """Of independent ratios: on the logarithmic scale, distances to the bounds add in squares, each side for itself.

    Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008): it
    needs no degrees of freedom, errs on the wide side with few, and one exact ratio leaves the other's bounds as they
    are. A bound that any of them lacks is lacking.
    """
    return exponential(_sum([_logarithm(ratio) for ratio in ratios]))


def quotient(a: Interval, b: Interval) -> Interval:
    """a / b, of independent ratios, as `product`."""
    log = _logarithm(b)
    inverse = Interval(-log.value, None if log.high is None else -log.high, None if log.low is None else -log.low)
    return exponential(_sum([_logarithm(a), inverse]))


def exponential(log: Interval) -> Interval:
    """The interval of exp(value), bound by bound."""
    low, high = (None if bound is None else float(np.exp(bound)) for bound in (log.low, log.high))
    return Interval(float(np.exp(log.value)), low, high)


def _logarithm(ratio: Interval) -> Interval:
    low, high = (None if bound is None else float(np.log(bound)) for bound in (ratio.low, ratio.high))
    return Interval(float(np.log(ratio.value)), low, high)


def _sum(terms: Sequence[Interval]) -> Interval:
    value = sum(term.value for term in terms)
    below = [term.value - term.low for term in terms if term.low is not None]
    above = [term.high - term.value for term in terms if term.high is not None]
    return Interval(
        value,
        value - float(np.hypot.reduce(below)) if len(below) == len(terms) else None,
        value + float(np.hypot.reduce(above)) if len(above) == len(terms) else None,
    )


def _mean_and_half(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Over the first axis: mean, and half the width of its interval (None: one value)."""
    n = len(values)
    mean = values[0] + (values - values[0]).mean(axis=0)  # exactly the value of equal ones
    if n == 1:
        return mean, None
    return mean, stats.t.isf(ALPHA / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
