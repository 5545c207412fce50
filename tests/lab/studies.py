"""Made-up studies, as a comparison would find them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptstar.lab.study import Curve, Interval, Line, Part, Speed, Study, Variant

ODD = (
    "a <b>&amp;</b> </script><script>document.title='broken'</script> | `x` *y* $z$ \"q\" \u2028 GPT-127* déjà 模型 \\"
)


def curve(gain: float, factor: float, seeds: int, seed: int) -> Curve:
    """A falling loss; gain: how much lower in the end, as a share; factor: of a token, in the axis's unit."""
    rng = np.random.default_rng(seed)
    tokens = np.linspace(0, 6e6, 31)[1:]
    mean = (2.9 + 5.5 / (1 + tokens / 2e5)) * (1 - gain * tokens / tokens[-1])
    x = [float(t * factor) for t in tokens]
    runs = [mean * (1 + 0.004 * rng.standard_normal()) for _ in range(seeds)]
    lines = [Line(f"run-{number}", x, [float(y) for y in run]) for number, run in enumerate(runs)]
    middle = np.mean(runs, axis=0)
    low, high = (None, None) if seeds == 1 else ([float(0.99 * y) for y in middle], [float(1.01 * y) for y in middle])
    return Curve(x, [float(y) for y in middle], low, high, lines)


def variant(name: str, gain: float, word: str, seeds: int = 3, number: int = 0, baseline: bool = False) -> Variant:
    alone = seeds == 1
    seconds = 1 / (2000 + 150 * number)
    curves = {
        key: curve(gain, factor, seeds, number)
        for key, factor in (("tokens", 1.0), ("seconds", seconds), ("flops", 2e7))
    }
    final = 3.0771 * (1 - gain)
    bounds = (None, None) if alone else (final - 0.012, final + 0.012)
    effect = Interval(-100 * gain, *((None, None) if alone else (-100 * gain - 0.7, -100 * gain + 0.7)))
    share = 1 - 8 * gain
    reach = {
        "tokens": Interval(share, share - 0.03, share + 0.03),
        "time": Interval(share - 0.05, share - 0.1, None),
        "flops": Interval(share),
    }
    return Variant(
        name=name,
        why="" if baseline else f"what {name[:12]} is for",
        seeds=[f"{name[:12]}-{seed}" for seed in range(seeds)],
        parameters=2_969_856 + number,
        flops_per_token=21_234_688,
        tokens=6_000_000,
        final=Interval(final, *bounds),
        equal_time=None if alone else Interval(final + 0.01, final, final + 0.02),
        equal_flops=Interval(final),
        effect=None if baseline else effect,
        p=None if baseline or alone else 0.00004 if gain > 0.02 else 0.4321,
        word="baseline" if baseline else word,
        verdict=""
        if baseline
        else f"{word[0].upper()}{word[1:]}: {100 * gain:.1f}% (p as in the table), Dunnett's test.",
        more_seeds=None if alone else 0 if gain > 0.02 else 4,
        to_reach={} if baseline else reach if gain > 0 else {"tokens": None, "time": None, "flops": None},
        speed=Speed(
            Interval(2034.5 + number, 2001, 2068), Interval(1.0 + number / 10, 0.99, 1.2), 0.613, 1.25, not alone
        ),
        difference={} if baseline else {"model.position": ("learned", "alibi"), "optimizer.betas": ([0.9, 0.95], None)},
        curves=curves,
    )


def five(**changes) -> Study:
    """Five variants of three seeds."""
    names = [
        ("gpt2", 0.0, "baseline"),
        ("gpt2 block=parallel", 0.011, "better"),
        ("star_3m", 0.031, "better"),
        ("star_3m optimizer.name=muon", 0.052, "better"),
        ("no biases", -0.013, "worse"),
    ]
    variants = [variant(name, gain, word, 3, n, n == 0) for n, (name, gain, word) in enumerate(names)]
    study = Study(
        title="Does a wide and shallow GPT learn faster?",
        metric="loss",
        baseline="gpt2",
        test="Dunnett's test on log loss: intervals and p hold for all variants together.",
        variants=variants,
        excluded={"runs/gpt2-7": "stopped at step 300 of 600", "runs/old": "its validation text is another"},
        notes=["Runs are of two commits."],
        hardware=["2 cores of an AMD EPYC"],
        commits=["84abd84c0ffe"],
        command="python compare.py runs/ablation baseline=gpt2",
        why="The authors of GPT* claim 25% in all; here are its parts at three million parameters.",
        training_command="python train.py -m experiment=ablate_star trainer.seed=0,1,2",
    )
    return replace(study, **changes)


def ablation() -> Study:
    parts = [
        Part("+ parallel residual", Interval(1.07, 1.05, 1.09), 0.3, Interval(1.06, 1.01, 1.11), 0.25, "5-10%"),
        Part("+ wide heads, half depth", Interval(1.13, 1.1, 1.16), 0.6, Interval(1.2), 0.75, "10-15%"),
        Part("+ ALiBi at half context", None, None, None, None, ""),
    ]
    return five(parts=parts, title="Ablation of GPT*")


def one_seed() -> Study:
    variants = [variant("gpt2", 0.0, "baseline", 1, 0, True), variant("star", 0.02, "cannot say", 1, 1)]
    return five(variants=variants, metric="bits_per_byte", title="One seed each")


def alone() -> Study:
    return five(
        variants=[variant("gpt2", 0.0, "baseline", 3, 0, True)], title="A run alone", excluded={}, notes=[], why=""
    )


def many() -> Study:
    """Eleven variants, of names that are long or odd, one without curves and with infinite figures."""
    names = ["gpt2", ODD, "x" * 120, "a name of many words that goes on and on until nobody can read it at once"]
    names += [f"idea {number}" for number in range(7)]
    variants = [
        variant(name, n / 300 if n else 0.0, "no difference seen", 3, n, n == 0) for n, name in enumerate(names)
    ]
    lost = Interval(float("nan"), float("-inf"), float("inf"))
    variants[-1] = replace(variants[-1], curves={}, final=lost, effect=None, p=float("nan"), speed=None, to_reach={})
    variants[-2] = replace(variants[-2], difference={ODD: (ODD, {"a|b": [1, None, True]})}, more_seeds=1001)
    return five(variants=variants, title=ODD, notes=[ODD], excluded={ODD: ODD}, command=ODD)


def drawn_from() -> dict[str, Study]:
    return {"five": five(), "ablation": ablation(), "one_seed": one_seed(), "alone": alone(), "many": many()}
