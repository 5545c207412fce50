"""Where a falling loss curve comes down to a target, and what share of the baseline's budget that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from gptstar.lab.statistics.intervals import ALPHA, band
from gptstar.lab.study import Interval, Line


def reach(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, target: float) -> float | None:
    """The x at which y first comes down to the target, None where it never does; its first x, if it starts there.

    Judged by the running minimum, since validations scatter and a curve that has been below the target could have
    stopped there. Between two points y falls in a straight line over log x, which misses a power law by a
    quarter of what a straight line over x does; over x where it is 0.
    """
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(values)
    at, lowest = at[finite], np.minimum.accumulate(values[finite])
    below = np.flatnonzero(lowest <= target)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(at[0])
    back = (target - lowest[i]) / (lowest[i - 1] - lowest[i])  # 0: just at this point, so that it is met exactly
    if at[i - 1] <= 0:
        return float(at[i] - back * (at[i] - at[i - 1]))
    return float(at[i] * (at[i - 1] / at[i]) ** back)


def to_reach(variant: Sequence[Line], baseline: Sequence[Line]) -> Interval | None:
    """Budget at which the variant reaches the baseline's mean final value, as a share of the baseline's whole budget.

    Two things scatter: where the variant's seeds reach that value, and the value itself, seen as where the variant's
    mean curve reaches the final value of each of the baseline's seeds. Their variances add on the logarithmic scale;
    Student's t with Welch and Satterthwaite's degrees of freedom.

    None: the mean curve does not reach it. With `high` but no `low`: its first point is there already. Without bounds:
    one of the two has a single seed. With `low` but no `high`: some seeds, or some of the baseline's values, are not
    reached; these count as reached at the end for `low`.
    """
    x, y = _mean_curve(variant)
    finals, budgets = np.array([line.y[-1] for line in baseline]), np.array([line.x[-1] for line in baseline])
    target, budget = float(_mean(finals)), float(_mean(budgets))
    at = reach(x, y, target)
    if at is None:
        return None
    value = at / budget
    if at <= x[0]:  # at the first validation already, so sooner than that
        return Interval(value, None, value)
    if len(variant) == 1 or len(baseline) == 1:
        return Interval(value)
    seeds = [(reach(line.x, line.y, target), line.x[-1], budget) for line in variant]
    targets = [(reach(x, y, line.y[-1]), x[-1], line.x[-1]) for line in baseline]
    parts, dfs = [], []
    for crossings in (seeds, targets):
        logs = np.log([(end if crossing is None else crossing) / own for crossing, end, own in crossings])
        parts.append(logs.var(ddof=1) / len(logs))
        dfs.append(len(logs) - 1)
    variances = np.array(parts)
    if not variances.sum() > 0:
        half = 0.0
    else:
        df = variances.sum() ** 2 / (variances**2 / dfs).sum()
        half = float(stats.t.isf(ALPHA / 2, df) * np.sqrt(variances.sum()))
    everywhere = all(crossing is not None for crossing, _, _ in seeds + targets)
    return Interval(value, float(value * np.exp(-half)), float(value * np.exp(half)) if everywhere else None)


def _mean_curve(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """One by one where lines have equally many points, as validations of one schedule do: by wall time no two share an
    x, and on the overlap alone the slower seeds would lose their ends.
    """
    if len({len(line.x) for line in lines}) > 1:
        curve = band(lines)
        return np.array(curve.x), np.array(curve.mean)
    return _mean(np.array([line.x for line in lines])), _mean(np.array([line.y for line in lines]))


def _mean(values: np.ndarray) -> np.ndarray:
    return values[0] + (values - values[0]).mean(axis=0)  # exactly the value of equal ones
