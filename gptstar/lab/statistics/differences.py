"""Whether variants differ from the baseline, by how much, and how many seeds would tell: tests on the logarithm of
final losses, so that effects are shares of the baseline's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special, stats

from gptstar.errors import UserError
from gptstar.lab.statistics import dunnett
from gptstar.lab.statistics.intervals import ALPHA
from gptstar.lab.study import Interval

UNEQUAL = 0.1  # Bartlett's p below which variances are not pooled; tests/lab/statistics has the simulations
MOST_SEEDS = 1000  # more are not counted
ROUNDING = 1e-12  # a standard error below it is none

LEAST_DF = 6  # degrees of freedom that are worth taking out what seeds share

Groups = Mapping[str, Sequence[float]]  # name of a variant -> final losses of its seeds
Seeds = Mapping[str, Sequence[int | None]]  # which seeds these are, in the same order


@dataclass(frozen=True)
class Difference:
    """Of a variant's mean final loss from the baseline's.

    effect   in percent of the baseline's, below 0: better; its interval holds for all variants at once
    p        of there being none, for all variants at once; se: of the logarithms' difference, with df degrees of
             freedom; None where nothing can be said
    test     its name; remark: what weakens it, or why nothing can be said
    """

    effect: Interval
    p: float | None
    se: float | None
    df: float | None
    test: str
    remark: str = ""


def compare(groups: Groups, baseline: str, seeds: Seeds | None = None) -> tuple[str, dict[str, Difference]]:
    """The test in words, and every other variant's difference from the baseline.

    Dunnett's test with one variance for all; Student's with one variant. Where the seeds scatter too differently for
    one variance (Bartlett's test), Welch's t with Bonferroni's correction, whose intervals agree with its p values as
    Dunnett's do (Holm's have none that would). A variant with one seed borrows the scatter of the others.

    Where all variants were trained with the same seeds, and are enough (LEAST_DF), seeds are blocks: what one seed's
    order of the data does to all variants alike is no scatter between them (a randomized block design). That is decided
    by the design, never by the losses. What then scatters too differently for one variance is told from the baseline by
    its differences from it seed by seed (paired t, with Bonferroni's correction).
    """
    test = _Test.of(groups, baseline, seeds)
    return test.words, {name: _difference(test, name) for name in groups if name != baseline}


def power(
    groups: Groups, baseline: str, variant: str, percent: float = 0.5, seeds: Seeds | None = None
) -> float | None:
    """Probability that `compare` sees a true difference of so many percent with seeds that scatter as these do.

    None: nothing is known of the scatter.
    """
    return _Test.of(groups, baseline, seeds).power(variant, percent)


def more_seeds(
    groups: Groups,
    baseline: str,
    variant: str,
    percent: float = 0.5,
    power: float = 0.8,
    seeds: Seeds | None = None,
) -> int | None:
    """How many more seeds of the variant, and as many of the baseline, would see a true difference with that power.

    0: there are enough. MOST_SEEDS + 1: more than MOST_SEEDS. None: nothing is known of the scatter.
    """
    test = _Test.of(groups, baseline, seeds)
    if test.power(variant, percent) is None:
        return None
    low, high = -1, MOST_SEEDS + 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = (test.with_more(middle, variant).power(variant, percent) or 0.0) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


@dataclass(frozen=True)
class _Test:
    """What differences are held against.

    means, sizes, variances   of log(final loss), by variant; pooled: all have the same variance; NaN: it is not known
    why_unequal               in words, where they are not pooled
    blocks                    how many seeds all variants share, whose part is taken out of the variance; 0: none is
    paired                    where blocks are not pooled: the variance of a variant's differences from the baseline
    """

    baseline: str
    means: dict[str, float]
    sizes: dict[str, int]
    variances: dict[str, float]
    pooled: bool
    why_unequal: str = ""
    blocks: int = 0
    paired: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Groups, baseline: str, seeds: Seeds | None) -> _Test:
        logs = _logarithms(groups, baseline)
        blocks = _shared_seeds(logs, seeds)
        several = [values for values in logs.values() if len(values) > 1]
        squares, df = sum(((v - v.mean()) ** 2).sum() for v in several), sum(len(v) - 1 for v in several)
        paired: dict[str, float] = {}
        if blocks:
            assert seeds is not None
            ordered = np.array([values[np.argsort(seeds[name])] for name, values in logs.items()])  # type: ignore[arg-type]
            several = list(ordered - ordered.mean(axis=0))
            squares, df = sum(((v - v.mean()) ** 2).sum() for v in several), (len(logs) - 1) * (blocks - 1)
        variances = dict.fromkeys(logs, float(squares / df) if df else np.nan)
        p = _equal_variances(several)
        if p < UNEQUAL and blocks:
            of_baseline = ordered[list(logs).index(baseline)]
            paired = {name: float((o - of_baseline).var(ddof=1)) for name, o in zip(logs, ordered, strict=True)}
        if p < UNEQUAL:
            variances = {name: float(v.var(ddof=1)) if len(v) > 1 else np.nan for name, v in logs.items()}
        return cls(
            baseline,
            {name: float(v.mean()) for name, v in logs.items()},
            {name: len(v) for name, v in logs.items()},
            variances,
            p >= UNEQUAL,
            f"the seeds of some scatter more than those of others (Bartlett's test, p = {p:.2g})",
            blocks,
            paired,
        )

    @property
    def name(self) -> str:
        if not self.pooled:
            return "paired t test" if self.paired else "Welch's t test"
        return "Dunnett's test" if len(self.sizes) > 2 else "Student's t test"

    @property
    def words(self) -> str:
        variants = len(self.sizes) - 1
        if not variants:
            return "none: there is nothing but the baseline"
        if self.pooled and np.isnan(self.variances[self.baseline]):
            return "none: no variant has two seeds, so nothing tells chance from effect"
        at_once = f" that hold for all {variants} variants at once" if variants > 1 else ""
        if self.pooled:
            df = self._pooled_df
            what = f"one variance for all, {df} degree{'s' * (df > 1)} of freedom"
            what += ", what the same seed does to all of them taken out" if self.blocks else ""
        else:
            what = "Bonferroni's correction" if variants > 1 else "a variance each"
            what += ", seeds compared one by one" if self.paired else ""
            what += f", because {self.why_unequal}"
        name = self.name[0].upper() + self.name[1:]
        return f"{name} of log(final loss) against {self.baseline}, 95% intervals and p values{at_once}; {what}"

    def error(self, variant: str) -> tuple[float, float]:
        """Standard error of the variant's difference, NaN where it is not known, and its degrees of freedom."""
        pair = (variant, self.baseline)
        if self.paired:
            n = self.sizes[variant]
            return float(np.sqrt(self.paired[variant] / n)), float(n - 1)
        parts = np.array([self.variances[name] / self.sizes[name] for name in pair])
        if self.pooled:
            df = float(self._pooled_df)
        else:  # Welch and Satterthwaite's
            with np.errstate(invalid="ignore", divide="ignore"):
                df = float(parts.sum() ** 2 / (parts**2 / [self.sizes[name] - 1 for name in pair]).sum())
        return float(np.sqrt(parts.sum())), df

    def p(self, t: float, df: float) -> float:
        if self.pooled:
            return dunnett.exceedance(t, self._shares, df)
        return float(min(1.0, 2 * stats.t.sf(abs(t), df) * (len(self.sizes) - 1)))

    def critical(self, df: float) -> float:
        if self.pooled:
            return dunnett.critical(self._shares, df, ALPHA)
        return float(stats.t.isf(ALPHA / 2 / (len(self.sizes) - 1), df))

    def power(self, variant: str, percent: float) -> float | None:
        se, df = self.error(variant)
        if not se > ROUNDING:
            return None
        return dunnett.power(float(np.log1p(percent / 100)) / se, self.critical(df), df)

    def with_more(self, seeds: int, variant: str) -> _Test:
        return replace(self, sizes=self.sizes | {name: self.sizes[name] + seeds for name in (variant, self.baseline)})

    @property
    def _pooled_df(self) -> int:
        """Of the variance that all share. More seeds of a pair than there are blocks tell by their own difference."""
        if self.blocks:
            return (len(self.sizes) - 1) * (self.blocks - 1) + max(self.sizes.values()) - self.blocks
        return sum(size - 1 for size in self.sizes.values())

    @property
    def _shares(self) -> tuple[float, ...]:
        variants = [size for name, size in self.sizes.items() if name != self.baseline]
        return dunnett.shares(variants, self.sizes[self.baseline])


def _difference(test: _Test, name: str) -> Difference:
    log = test.means[name] - test.means[test.baseline]
    se, df = test.error(name)
    single = [each for each in (name, test.baseline) if test.sizes[each] == 1]
    if not se > ROUNDING:
        if se <= ROUNDING:
            remark = "its seeds end at the very same loss, as one run would"
        elif test.pooled:
            remark = "no variant has two seeds, so nothing tells chance from effect"
        else:
            remark = f"there is one seed only of {' and '.join(single)}, and {test.why_unequal}"
        return Difference(Interval(_percent(log)), None, None, None, test.name, remark)
    half = test.critical(df) * se
    effect = Interval(_percent(log), _percent(log - half), _percent(log + half))
    remark = f"one seed only of {' and '.join(single)}: its scatter is taken to be that of the others" if single else ""
    return Difference(effect, test.p(log / se, df), se, df, test.name, remark)


def _shared_seeds(logs: Mapping[str, np.ndarray], seeds: Seeds | None) -> int:
    """How many there are, where every variant has each of them once and they are worth being blocks; else 0."""
    if seeds is None or any(None in seeds[name] for name in logs):
        return 0
    first, *others = (sorted(seeds[name]) for name in logs)  # type: ignore[type-var]
    if any(other != first for other in others) or len({*first}) < len(first):
        return 0
    return len(first) if (len(logs) - 1) * (len(first) - 1) >= LEAST_DF else 0


def _percent(log: float) -> float:
    return float(100 * np.expm1(log))


def _equal_variances(groups: list[np.ndarray]) -> float:
    """Bartlett's p of the groups scattering alike; 1 where fewer than two can tell."""
    df = np.array([len(values) - 1 for values in groups])
    variances = np.array([values.var(ddof=1) for values in groups])
    none = variances <= ROUNDING**2
    if len(groups) < 2 or none.all():
        return 1.0
    if none.any():
        return 0.0
    pooled = df @ variances / df.sum()
    correction = 1 + ((1 / df).sum() - 1 / df.sum()) / (3 * (len(groups) - 1))
    statistic = max(0.0, df @ np.log(pooled / variances) / correction)  # below 0 by rounding where all are equal
    return float(special.chdtrc(len(groups) - 1, statistic))


def _logarithms(groups: Groups, baseline: str) -> dict[str, np.ndarray]:
    if baseline not in groups:
        raise UserError(f"baseline={baseline} is none of the variants: choose one of {', '.join(groups)}")
    for name, losses in groups.items():
        bad = [loss for loss in losses if not (np.isfinite(loss) and loss > 0)]
        if bad or not len(losses):
            what = f"a final loss of {bad[0]}" if bad else "no final loss"
            raise UserError(f"{name} has {what}: leave out runs that diverged or did not finish")
    return {name: np.log(np.asarray(losses, dtype=np.float64)) for name, losses in groups.items()}
