"""From runs with planted differences to a study's figures."""

import dataclasses

import numpy as np
import pytest

from gptstar.errors import UserError
from gptstar.lab.analysis import analyse
from gptstar.lab.reading.description import Description
from gptstar.lab.reading.runs import HeldOut, Run, Validation
from gptstar.lab.reading.variants import digest
from gptstar.lab.speed import Measured, Speeds

TEXT = HeldOut("abc", 1000, 10, 4000, 64)


def curve(tokens, level=1.0):
    """A power law, so that a level 1% higher everywhere needs a known multiple of the tokens."""
    return level * 10 * np.asarray(tokens, dtype=float) ** -0.1


def run(variant, seed, level=1.0, noise=0.0, rate=1000.0, flops=100, budget=10_000, **changes) -> Run:
    tokens = np.linspace(budget / 10, budget, 10).astype(int)
    losses = curve(tokens, level * (1 + noise))
    return Run(
        source=f"study/{variant}-{seed}",
        name=f"{variant}-{seed}",
        config={"model": {"d_ff": {"base": 1}.get(variant, 2)}, "trainer": {"seed": seed}},
        variant=variant,
        **{
            "seed": seed,
            "budget": budget,
            "steps": np.arange(1, 11),
            "tokens": tokens,
            "losses": losses,
            "seconds": tokens / rate,
            "validations": [
                Validation(i + 1, int(n), float(n / rate), float(v), float(v / 3))
                for i, (n, v) in enumerate(zip(tokens, losses, strict=True))
            ],
            "final_loss": float(losses[-1]),
            "final_bits_per_byte": float(losses[-1] / 3),
            "parameters": 50,
            "flops_per_token": flops,
            "tokens_per_second": rate,
            "mfu": 0.5,
            "memory_gib": 1.0,
            "tokenizer": "t",
            "held_out": TEXT,
            "hardware": "a machine",
            "commit": "c0ffee",
            **changes,
        },
    )


NOISE = (-0.001, 0.0, 0.001)


def three(variant, **kwargs) -> list[Run]:
    return [run(variant, seed, noise=noise, **kwargs) for seed, noise in enumerate(NOISE)]


def test_a_planted_gain_is_found_and_priced():
    level = 0.95
    study = analyse([*three("base"), *three("better", level=level, rate=500.0, flops=200)], baseline="base")
    base, better = study.variants
    assert (study.metric, study.baseline, base.word, better.word) == ("loss", "base", "baseline", "better")
    assert base.effect is None and base.to_reach["tokens"].value == 1
    assert better.effect.value == pytest.approx(-5, abs=1e-6)
    assert better.effect.low < -5 < better.effect.high < 0
    # L = 10 level n^-0.1 comes down to 10 N^-0.1 at n = N level^10; at half the speed and twice the FLOPs
    share = level**10
    assert better.to_reach["tokens"].value == pytest.approx(share, rel=0.01)
    assert better.to_reach["time"].value == pytest.approx(2 * share, rel=0.01)
    assert better.to_reach["flops"].value == pytest.approx(2 * share, rel=0.01)
    # where the baseline's time is up, the variant has had half its tokens
    assert better.equal_time.value == pytest.approx(float(curve(5000, level)), rel=1e-3)
    assert base.equal_flops.value == pytest.approx(float(curve(10_000)), rel=1e-6)
    assert better.difference == {"model.d_ff": (1, 2)}
    assert set(better.curves) == {"tokens", "seconds", "flops"} and better.curves["tokens"].x[-1] == 10_000
    assert not better.speed.interleaved and better.speed.ratio.value == 0.5
    assert any("measure=8" in note for note in study.notes)


def test_speeds_measured_in_turns_decide_the_time():
    speeds = Speeds(
        "quiet machine",
        "c0ffee",
        2,
        3,
        {"base": Measured([100.0, 50.0], [0.5, 0.5], 1.0), "other": Measured([200.0, 100.0], [0.6, 0.6], 2.0)},
        {name: digest(run(name, 0).config) for name in ("base", "other")},
    )
    study = analyse([*three("base"), *three("other")], "base", speeds=speeds)
    other = study.variants[1]
    assert other.speed.interleaved and other.speed.ratio.value == pytest.approx(2)
    assert other.speed.ratio.low == pytest.approx(2) == other.speed.ratio.high  # the same in every round
    assert other.to_reach["tokens"].value == pytest.approx(1)
    assert other.to_reach["time"].value == pytest.approx(0.5)
    assert other.curves["seconds"].x[-1] == pytest.approx(10_000 / 150)
    assert "quiet machine" in study.hardware
    changed = dataclasses.replace(speeds, settings={**speeds.settings, "other": "of another time"})
    for wanted in (changed, dataclasses.replace(speeds, settings={})):
        study = analyse([*three("base"), *three("other")], "base", speeds=wanted)
        assert not study.variants[1].speed.interleaved
        assert any("speed.json was not used" in note for note in study.notes)


def test_what_is_not_known_is_not_said_to_be_out_of_reach():
    unknown = dict(seconds=None, flops_per_token=None, parameters=None, tokens_per_second=None)
    runs = [dataclasses.replace(r, **unknown) for r in [*three("base"), *three("better", level=0.9)]]
    for each in runs:
        each.validations[:] = [dataclasses.replace(v, seconds=None) for v in each.validations]
    better = analyse(runs, "base").variants[1]
    assert set(better.to_reach) == {"tokens"} and better.to_reach["tokens"].value < 0.5
    assert set(better.curves) == {"tokens"} and better.equal_time is None


def test_other_budgets_are_said_in_the_verdict():
    study = analyse([*three("base"), *three("half", level=0.9, budget=5000)], "base")
    assert study.variants[1].verdict.startswith("With 0.5 times the tokens. Better than base")


def test_a_validation_before_the_first_step_is_no_trouble():
    runs = [*three("base"), *three("cheap", flops=50)]
    for each in runs:
        each.validations.insert(0, Validation(0, 0, 0.0, 9.0, 3.0))
    study = analyse(runs, "base")
    assert study.variants[0].equal_flops.value == pytest.approx(float(curve(5000)), rel=1e-3)


def test_times_to_loss_are_taken_apart_against_the_first_only():
    parts = [{"name": "x", "after": "a", "until": "b", "claimed": ""}]
    about = Description(None, "s", baseline="a", variants={"a": "", "b": ""}, reports={"parts": parts})  # type: ignore[arg-type]
    study = analyse([*three("a"), *three("b", level=0.9, rate=1500.0)], "b", about)
    assert study.parts[0].to_loss is None and study.parts[0].throughput.value == pytest.approx(1.5)
    assert any("only against a" in note for note in study.notes)


def test_other_tokenizers_are_compared_in_bits_per_byte():
    other = three("other", tokenizer="u", final_loss=1.0, held_out=HeldOut("xyz", 2000, 10, 4000, 64))
    study = analyse([*three("base"), *other], "base")
    assert study.metric == "bits_per_byte" and study.unit == "bits/byte"
    assert study.variants[1].effect.value == pytest.approx(0, abs=1e-9)
    assert study.variants[1].word == "no difference seen"


def test_what_is_unfinished_or_read_other_text_is_left_out_by_name():
    other_text = HeldOut("xyz", 999, 9, 3999, 64)
    broken = run("other", 7, problem="stopped at step 3 of 10")
    study = analyse([*three("base"), *three("other"), broken, run("strange", 0, held_out=other_text)], "base")
    assert [v.name for v in study.variants] == ["base", "other"]
    assert study.excluded["study/other-7"] == "stopped at step 3 of 10"
    assert "study/strange-0" in study.excluded


def test_the_baseline_may_be_named_by_one_of_its_runs():
    runs = [*three("a"), *three("b")]
    assert analyse(runs).baseline == "a"
    assert analyse(runs, "b-1").baseline == "b" == analyse(runs, "study/b-2/").baseline
    with pytest.raises(UserError, match="baseline=c is neither a variant nor a run here: choose one of a, b"):
        analyse(runs, "c")


def test_one_seed_each_cannot_say_and_one_variant_has_no_rival():
    study = analyse([run("a", 0), run("b", 0, level=0.9)], "a")
    assert study.variants[1].word == "cannot say" and study.variants[1].p is None
    assert study.variants[1].effect.low is None
    alone = analyse(three("a"))
    assert [v.word for v in alone.variants] == ["baseline"]


def test_an_ablation_is_taken_apart_into_shares_that_add_up():
    parts = [
        {"name": "first", "after": "a", "until": "b", "claimed": "10%"},
        {"name": "second", "after": "b", "until": "c", "claimed": "the rest"},
    ]
    about = Description(None, "s", baseline="a", variants={"a": "", "b": "", "c": ""}, reports={"parts": parts})  # type: ignore[arg-type]
    runs = [*three("c", level=0.98, rate=2000.0), *three("a"), *three("b", level=0.99, rate=1500.0)]
    study = analyse(runs, None, about)
    assert [v.name for v in study.variants] == ["a", "b", "c"]
    first, second, whole = study.parts
    assert whole.throughput.value == pytest.approx(2) and first.throughput.value == pytest.approx(1.5)
    assert first.throughput_share + second.throughput_share == pytest.approx(1) == whole.throughput_share
    assert first.to_loss.value == pytest.approx(1.5 / 0.99**10, rel=0.01)
    assert whole.to_loss.value == pytest.approx(2 / 0.98**10, rel=0.01)
    assert first.to_loss_share + second.to_loss_share == pytest.approx(1)
    assert first.claimed == "10%"
    slower = [dataclasses.replace(r, tokens_per_second=1020.0) if r.variant == "c" else r for r in runs]
    assert [part.throughput_share for part in analyse(slower, None, about).parts] == [None] * 3
    missing = analyse([*three("a"), *three("b")], None, about)
    assert not missing.parts and any("because c has no run" in note for note in missing.notes)
