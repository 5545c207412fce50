"""Tests of differences, on studies whose truth is known: a thousand simulated ones for each claim."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from gptstar.errors import UserError
from gptstar.lab.statistics.differences import MOST_SEEDS, compare, more_seeds, power
from gptstar.lab.statistics.verdict import word

STUDIES = 1000
BASE = 3.5  # nats a token
SD = 0.003  # of the seeds, as a share of the loss


def within(rate: float, expected: float) -> bool:
    """Three standard errors of a thousand studies."""
    return abs(rate - expected) <= 3 * np.sqrt(expected * (1 - expected) / STUDIES)


def simulate(seed: int, groups: dict[str, tuple[float, float, int]]):
    """Studies of groups {name: (percent from the baseline's loss, sd as a share of SD, seeds)}."""
    rng = np.random.default_rng(seed)
    for _ in range(STUDIES):
        yield {
            name: BASE * (1 + percent / 100) * np.exp(rng.normal(0, scale * SD, seeds))
            for name, (percent, scale, seeds) in groups.items()
        }


def exactly(sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Groups whose seeds scatter by exactly SD."""
    groups = {}
    for name, n in sizes.items():
        z = np.random.default_rng(seed).normal(size=n)
        groups[name] = BASE * np.exp(SD * (z - z.mean()) / z.std(ddof=1))
    return groups


def test_agrees_with_scipys_dunnett():
    rng = np.random.default_rng(3)
    groups = {name: np.exp(rng.normal(m, 0.01, n)) for name, m, n in (("b", 1, 4), ("x", 1.02, 5), ("y", 0.99, 3))}
    words, found = compare(groups, "b")
    theirs = stats.dunnett(*(np.log(groups[name]) for name in "xy"), control=np.log(groups["b"]), rng=rng)
    bounds = theirs.confidence_interval()
    assert words == (
        "Dunnett's test of log(final loss) against b, 95% intervals and p values that hold for all 2 variants at once; "
        "one variance for all, 9 degrees of freedom"
    )
    for i, name in enumerate("xy"):
        assert found[name].p == pytest.approx(theirs.pvalue[i], abs=2e-3)
        assert found[name].effect.low == pytest.approx(100 * np.expm1(bounds.low[i]), abs=0.02)
        assert found[name].effect.high == pytest.approx(100 * np.expm1(bounds.high[i]), abs=0.02)


def test_one_variant_is_students_t():
    groups = {"b": [3.50, 3.52, 3.51], "x": [3.48, 3.49, 3.46, 3.47]}
    words, found = compare(groups, "b")
    theirs = stats.ttest_ind(np.log(groups["x"]), np.log(groups["b"]))
    assert words.startswith("Student's t test of log(final loss) against b")
    assert found["x"].p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    assert (found["x"].effect.low, found["x"].effect.high) == pytest.approx((100 * np.expm1(low), 100 * np.expm1(high)))


def test_unlike_scatter_is_welchs_t_and_the_words_say_why():
    groups = {"b": [3.50, 3.501, 3.502], "x": [3.4, 3.6, 3.8], "y": [3.45, 3.452, 3.451]}
    words, found = compare(groups, "b")
    assert words.startswith("Welch's t test") and "Bonferroni's correction, because the seeds of some scatter" in words
    for name in "xy":
        theirs = stats.ttest_ind(np.log(groups[name]), np.log(groups["b"]), equal_var=False)
        low, high = theirs.confidence_interval(1 - 0.05 / 2)
        assert found[name].p == pytest.approx(min(1, 2 * theirs.pvalue))
        assert found[name].effect.low == pytest.approx(100 * np.expm1(low))
        assert found[name].effect.high == pytest.approx(100 * np.expm1(high))


@pytest.mark.parametrize("n", [3, 4, 7, 8])
def test_equal_scatter_is_pooled(n):
    words, found = compare(exactly({"b": n, "x": n, "y": 4}), "b")
    assert words.startswith("Dunnett's test") and found["x"].df == 2 * n + 1


@pytest.mark.parametrize("y", [[3.45, 3.47, 3.42], [3.45, 3.4502]])
def test_scatter_is_judged_by_bartlett(y):
    groups = {"b": [3.50, 3.51, 3.52, 3.49], "x": [3.4, 3.45], "y": y}
    p = stats.bartlett(*(np.log(losses) for losses in groups.values())).pvalue
    words, found = compare(groups | {"z": [3.5]}, "b")
    assert (p < 0.1) == (f"(Bartlett's test, p = {p:.2g})" in words) == (found["x"].test == "Welch's t test")


def test_one_seed_borrows_the_scatter_of_the_others():
    _, found = compare({"b": [3.50, 3.52], "x": [3.4], "y": [3.51, 3.50]}, "b")
    assert found["x"].df == 2 and found["x"].se > found["y"].se
    assert "one seed only of x" in found["x"].remark and not found["y"].remark
    _, found = compare({"b": [3.50], "x": [3.4, 3.41, 3.42]}, "b")
    assert found["x"].p < 0.05 and "one seed only of b" in found["x"].remark


def test_what_cannot_be_said_is_not_said():
    words, found = compare({"b": [3.5], "x": [3.4], "y": [3.3]}, "b")
    assert words.startswith("none: no variant has two seeds")
    assert found["x"].effect.value == pytest.approx(100 * (3.4 / 3.5 - 1))
    assert all(each.p is None and each.effect.low is None and word(each) == "cannot say" for each in found.values())
    assert more_seeds({"b": [3.5], "x": [3.4]}, "b", "x") is None
    words, found = compare({"b": [3.5, 3.5], "x": [3.4, 3.4]}, "b")
    assert found["x"].p is None and "as one run would" in found["x"].remark
    assert more_seeds({"b": [3.5, 3.5], "x": [3.4, 3.4]}, "b", "x") is None
    _, found = compare({"b": [3.50, 3.501, 3.502], "x": [3.4, 3.6, 3.8], "y": [3.45]}, "b")
    assert found["x"].p is not None and found["y"].p is None and "one seed only of y" in found["y"].remark
    words, found = compare({"b": [3.5, 3.6]}, "b")
    assert words == "none: there is nothing but the baseline" and not found


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": [3.4]}, "baseline=b is none of the variants: choose one of x"),
        ({"b": [3.4], "x": [float("nan")]}, "x has a final loss of nan: leave out"),
        ({"b": [3.4], "x": [0.0]}, r"x has a final loss of 0\.0"),
        ({"b": [3.4], "x": []}, "x has no final loss"),
    ],
)
def test_bad_groups_are_refused_in_a_line(groups, message):
    with pytest.raises(UserError, match=message):
        compare(groups, "b")


def test_equal_variants_are_called_different_in_five_studies_of_a_hundred():
    equal = {"b": (0, 1, 5), "x": (0, 1, 5), "y": (0, 1, 5), "z": (0, 1, 5)}
    false = sum(any(d.p < 0.05 for d in compare(groups, "b")[1].values()) for groups in simulate(1, equal))
    assert within(false / STUDIES, 0.05)


def test_intervals_hold_the_truth_of_all_variants_at_once():
    planted = {"b": (0, 1, 4), "x": (-1, 1, 5), "y": (0.4, 1, 2), "z": (-0.2, 1, 3)}
    covered = 0
    for groups in simulate(2, planted):
        found = compare(groups, "b")[1]
        covered += all(d.effect.low <= planted[name][0] <= d.effect.high for name, d in found.items())
        assert all((d.p < 0.05) == (d.effect.low * d.effect.high > 0) for d in found.values())  # they never disagree
    assert within(covered / STUDIES, 0.95)


@pytest.mark.parametrize(("percent", "stated"), [(1.0, 0.995), (0.6, 0.708)])
def test_a_planted_gain_is_found_at_the_power_that_is_stated(percent, stated):
    sizes = dict.fromkeys("bxyz", 5)
    formula = power(exactly(sizes), "b", "x", percent)
    assert formula == pytest.approx(stated, abs=0.005)
    planted = {"b": (0, 1, 5), "x": (-percent, 1, 5), "y": (0, 1, 5), "z": (0, 1, 5)}
    found = sum(word(compare(groups, "b")[1]["x"]) == "better" for groups in simulate(3, planted))
    assert found / STUDIES == pytest.approx(formula, abs=3 * np.sqrt(formula * (1 - formula) / STUDIES) + 0.01)


@pytest.mark.parametrize(("noisy", "seeds", "bound"), [("x", 3, 0.125), ("b", 3, 0.13), ("x", 5, 0.08)])
def test_a_variant_five_times_noisier_makes_few_false_verdicts(noisy, seeds, bound):
    groups = {name: (0, 5 if name == noisy else 1, seeds) for name in "bxyz"}
    false = sum(any(d.p < 0.05 for d in compare(each, "b")[1].values()) for each in simulate(4, groups))
    assert false / STUDIES < bound


def test_more_seeds_are_as_many_as_give_the_power():
    sizes = {"b": 3, "x": 3, "y": 4}
    more = more_seeds(exactly(sizes), "b", "x")
    assert 0 < more < 10
    enough = {name: n + more * (name != "y") for name, n in sizes.items()}
    fewer = {name: n - (name != "y") for name, n in enough.items()}
    assert power(exactly(fewer), "b", "x") < 0.8 <= power(exactly(enough), "b", "x")
    planted = {name: (-0.5 if name == "x" else 0, 1, n) for name, n in enough.items()}
    found = sum(word(compare(groups, "b")[1]["x"]) == "better" for groups in simulate(5, planted))
    assert found / STUDIES == pytest.approx(power(exactly(enough), "b", "x"), abs=0.05)
    assert found / STUDIES > 0.8 - 3 * np.sqrt(0.16 / STUDIES)


def test_more_seeds_ends_at_nought_and_at_its_cap():
    groups = exactly(dict.fromkeys("bxy", 5))
    assert more_seeds(groups, "b", "x", percent=2.0) == 0
    assert more_seeds(groups, "b", "x", percent=0.01) == MOST_SEEDS + 1
    counts = [more_seeds(groups, "b", "x", percent) for percent in (0.1, 0.2, 0.4, 0.8)]
    assert all(a > b for a, b in pairwise(counts))


def test_power_is_the_noncentral_ts():
    groups = exactly({"b": 4, "x": 4})
    shift, c = np.log1p(0.005) / (SD * np.sqrt(0.5)), stats.t.isf(0.025, 6)
    assert power(groups, "b", "x") == pytest.approx(stats.nct.sf(c, 6, shift) + stats.nct.cdf(-c, 6, shift), rel=1e-9)
    assert power(groups, "b", "x", 300) == pytest.approx(1)


def blocked(seed: int, effects: dict[str, float], n: int, shared: float, noisy: str | None = None):
    """Studies whose seeds shift all variants alike, by `shared` times what they scatter themselves."""
    rng, seeds = np.random.default_rng(seed), {name: list(range(n)) for name in effects}
    for _ in range(STUDIES):
        block = rng.normal(0, shared * SD, n)
        yield (
            {
                name: BASE * (1 + effect / 100) * np.exp(block + rng.normal(0, SD * (5 if name == noisy else 1), n))
                for name, effect in effects.items()
            },
            seeds,
        )


def test_what_seeds_do_to_all_alike_is_taken_out():
    (groups, seeds), *_ = blocked(7, dict.fromkeys("bxyz", 0.0), 4, 3.0)
    words, found = compare(groups, "b", seeds)
    logs = np.log([groups[name] for name in "bxyz"])
    variant, block = np.indices(logs.shape).reshape(2, -1)
    design = np.column_stack([*(variant == i for i in range(4)), *(block == j for j in range(1, 4))]).astype(float)
    residual = np.linalg.lstsq(design, logs.ravel(), rcond=None)[1][0]  # two-way analysis of variance
    assert found["x"].df == 9 and found["x"].se == pytest.approx(np.sqrt(2 * residual / 9 / 4))
    assert words.endswith(
        "one variance for all, 9 degrees of freedom, what the same seed does to all of them taken out"
    )
    for turned in ("bxyz", "x"):  # whatever order they are told in
        other = {name: losses[::-1] if name in turned else losses for name, losses in groups.items()}
        told = {name: each[::-1] if name in turned else each for name, each in seeds.items()}
        again = compare(other, "b", told)[1]
        assert [d.p for d in again.values()] == pytest.approx([d.p for d in found.values()])


@pytest.mark.parametrize(
    "seeds",
    [None, {"x": [1, 2, 4]}, {"x": [1, 2, None]}, {"x": [1, 2, 2]}],
    ids=["unknown", "other", "partly unknown", "twice"],
)
def test_other_seeds_are_no_blocks(seeds):
    groups = exactly(dict.fromkeys("bwxyz", 3))
    told = None if seeds is None else {key: [1, 2, 3] for key in "bwxyz"} | seeds
    words, found = compare(groups, "b", told)
    assert "taken out" not in words and found["x"].df == 10


def test_too_few_runs_are_no_blocks():
    groups = exactly(dict.fromkeys("bxy", 3))
    assert compare(groups, "b", {key: [1, 2, 3] for key in "bxy"})[1]["x"].df == 6  # and 4 as blocks


@pytest.mark.parametrize(("shared", "n"), [(0.0, 3), (3.0, 3), (3.0, 5)])
def test_blocks_keep_the_rate_of_false_verdicts(shared, n):
    studies = blocked(8, dict.fromkeys("bwxyz", 0.0), n, shared)
    false = sum(any(d.p < 0.05 for d in compare(groups, "b", seeds)[1].values()) for groups, seeds in studies)
    assert within(false / STUDIES, 0.055)


def test_blocks_keep_the_rate_with_a_noisy_variant():
    studies = blocked(9, dict.fromkeys("bwxyz", 0.0), 3, 1.0, noisy="x")
    false = sum(any(d.p < 0.05 for d in compare(groups, "b", seeds)[1].values()) for groups, seeds in studies)
    assert false / STUDIES < 0.13


def test_a_noisy_variant_hides_no_other_that_differs_seed_by_seed():
    seeds = {name: [1, 2, 3, 4] for name in "bwxyz"}
    shared = np.array([0.0, 0.012, -0.01, 0.02])
    own = {
        "b": [0, 0, 0, 0],
        "w": [1, -1, 2, 0],
        "x": [-200, 230, 40, -90],
        "y": [-20, -21, -19, -22],
        "z": [0, 1, 1, -1],
    }
    groups = {name: BASE * np.exp(shared + 1e-3 * np.array(values)) for name, values in own.items()}
    words, found = compare(groups, "b", seeds)
    assert words.startswith("Paired t test of log(final loss) against b") and "seeds compared one by one" in words
    expected = stats.ttest_rel(np.log(groups["y"]), np.log(groups["b"]))
    assert found["y"].p == pytest.approx(4 * expected.pvalue) and found["y"].df == 3 and word(found["y"]) == "better"
    bounds = expected.confidence_interval(1 - 0.05 / 4)
    assert found["y"].effect.low == pytest.approx(100 * np.expm1(bounds.low))
    assert {word(found[name]) for name in "wxz"} == {"no difference seen"}
    assert compare(groups, "b")[1]["y"].p > 0.05
    more = more_seeds(groups, "b", "y", seeds=seeds)
    assert more is not None and more < 3 and power(groups, "b", "y", 0.5, seeds) > 0.5
    turned = {name: losses[::-1] for name, losses in groups.items()}
    told = {name: each[::-1] for name, each in seeds.items()}
    assert compare(turned, "b", told)[1]["y"].p == pytest.approx(found["y"].p)


def test_blocks_find_at_the_stated_power_what_is_lost_without_them():
    effects = {"b": 0.0, "w": 0.0, "x": -1.0, "y": 0.0, "z": 0.0}
    found = lost = stated = 0.0
    for groups, seeds in blocked(10, effects, 3, 3.0):
        found += word(compare(groups, "b", seeds)[1]["x"]) == "better"
        lost += word(compare(groups, "b")[1]["x"]) == "better"
        stated += power(groups, "b", "x", 1.0, seeds) or 0.0
    assert lost / STUDIES < 0.3 < 0.7 < found / STUDIES
    assert found / STUDIES == pytest.approx(stated / STUDIES, abs=0.05)
