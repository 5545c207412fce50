"""From runs to a verdict: `analyse` decides every figure of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from gptstar.errors import UserError
from gptstar.lab.parts import parts_of
from gptstar.lab.reading.comparable import Comparable, comparable, trained
from gptstar.lab.reading.description import Description
from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.settings import difference
from gptstar.lab.reading.variants import digest, variants
from gptstar.lab.speed import Speeds
from gptstar.lab.statistics.crossing import to_reach
from gptstar.lab.statistics.differences import Difference, compare, more_seeds
from gptstar.lab.statistics.intervals import band, interval, quotient, speed_ratio
from gptstar.lab.statistics.verdict import verdict, word
from gptstar.lab.study import Interval, Line, Speed, Study, Variant

ONE = Interval(1.0, 1.0, 1.0)


def analyse(
    runs: Sequence[Run],
    baseline: str | None = None,
    about: Description | None = None,
    speeds: Speeds | None = None,
    title: str | None = None,
    command: str = "",
) -> Study:
    """What the runs say.

    baseline   a variant, or the folder or name of one of its runs; None: what the study says, or else the first variant
    speeds     measured in turns; without them each variant has the speed that its runs saw
    """
    groups = variants(runs)
    if about is not None:  # in the study's own order
        groups = {name: groups[name] for name in [*about.variants, *groups] if name in groups}
    chosen = _baseline(groups, baseline or (about.baseline if about else None))
    found = comparable(groups, chosen)
    speeds, unused = _fitting(speeds, found)
    values = {name: [_final(run, found.metric) for run in some] for name, some in found.kept.items()}
    seeds = {name: [run.seed for run in some] for name, some in found.kept.items()}
    words, differences = compare(values, chosen, seeds) if len(values) > 1 else ("nothing to compare with", {})
    lines = {name: _lines(some, found.metric, speeds, name) for name, some in found.kept.items()}
    seen = {name: _speed(name, chosen, found.kept, speeds) for name in found.kept}
    made = [_variant(name, chosen, found, about, values, seeds, differences, lines, seen) for name in found.kept]
    notes = [*found.notes, *unused, *_notes(speeds, made)]
    if about is not None and about.reports.get("parts"):
        parts, said = parts_of(about.reports["parts"], {v.name: v for v in made}, chosen, speeds)
        notes += said
    else:
        parts = []
    kept = [run for some in found.kept.values() for run in some]
    return Study(
        title=title or (about.name if about else f"{len(made)} variants against {chosen}"),
        metric=found.metric,
        baseline=chosen,
        test=words,
        variants=made,
        parts=parts,
        excluded=found.excluded,
        notes=notes,
        hardware=_distinct([*(run.hardware for run in kept), speeds.hardware if speeds else None]),
        commits=_distinct(run.commit for run in kept),
        command=command,
        why=about.why if about else "",
        training_command=about.command if about else "",
    )


def _baseline(groups: Mapping[str, Sequence[Run]], wanted: str | None) -> str:
    if wanted is None:
        return next(iter(groups))
    if wanted in groups:
        return wanted
    for name, runs in groups.items():
        if any(wanted.rstrip("/") in (run.name, run.source.rstrip("/")) for run in runs):
            return name
    if len(alike := [name for name in groups if wanted in name]) == 1:
        return alike[0]
    raise UserError(f"baseline={wanted} is neither a variant nor a run here: choose one of {', '.join(groups)}")


def _variant(
    name: str,
    baseline: str,
    found: Comparable,
    about: Description | None,
    values: Mapping[str, Sequence[float]],
    seeds: Mapping[str, Sequence[int | None]],
    differences: Mapping[str, Difference],
    lines: Mapping[str, dict[str, list[Line]]],
    seen: Mapping[str, Speed | None],
) -> Variant:
    runs, own = found.kept[name], differences.get(name)
    more = more_seeds(values, baseline, name, seeds=seeds) if own is not None else None
    unit = "loss" if found.metric == "loss" else "bits per byte"
    first = runs[0]
    share = trained(first) / max(1, trained(found.kept[baseline][0]))
    said = "What the others are compared with."
    if own is not None:
        said = "" if share == 1 else f"With {share:.3g} times the tokens. "
        said += verdict(name, baseline, own, more, unit=unit)
    return Variant(
        name=name,
        why=about.variants.get(name, "") if about else "",
        seeds=[run.name for run in runs],
        parameters=first.parameters,
        flops_per_token=first.flops_per_token,
        tokens=trained(first),
        final=interval(values[name]),
        equal_time=_at_equal("seconds", name, lines),
        equal_flops=_at_equal("flops", name, lines),
        effect=own.effect if own else None,
        p=own.p if own else None,
        word=word(own) if own else "baseline",
        verdict=said,
        more_seeds=more,
        to_reach=_to_reach(name, baseline, lines, seen),
        speed=seen[name],
        difference=difference(first.config, found.kept[baseline][0].config),
        curves={axis: band(some) for axis, some in lines[name].items() if _meet(some)},
    )


def _final(run: Run, metric: str) -> float:
    value = run.final_loss if metric == "loss" else run.final_bits_per_byte
    assert value is not None  # `comparable` has left the others out
    return value


def _lines(runs: Sequence[Run], metric: str, speeds: Speeds | None, name: str) -> dict[str, list[Line]]:
    """By axis; an axis that a run does not know is left out."""
    found: dict[str, list[Line]] = {}
    rate = statistics.mean(speeds.variants[name].tokens_per_second) if speeds else None
    for run in runs:
        tokens = [float(v.tokens) for v in run.validations]
        losses = [v.loss if metric == "loss" else v.bits_per_byte for v in run.validations]
        if not tokens or any(loss is None for loss in losses):
            continue
        seconds = [n / rate for n in tokens] if rate else [v.seconds for v in run.validations]
        axes: dict[str, Sequence[float | None]] = {"tokens": tokens, "seconds": seconds}
        if run.flops_per_token:
            axes["flops"] = [n * run.flops_per_token for n in tokens]
        for axis, x in axes.items():
            if all(value is not None for value in x):
                found.setdefault(axis, []).append(Line(run.name, list(x), losses))  # type: ignore[arg-type]
    return {axis: some for axis, some in found.items() if len(some) == len(runs)}


def _meet(lines: Sequence[Line]) -> bool:
    """Whether they have an x in common: short runs on a busy machine may not."""
    return max(line.x[0] for line in lines) <= min(line.x[-1] for line in lines)


def _at_equal(axis: str, name: str, lines: Mapping[str, dict[str, list[Line]]]) -> Interval | None:
    """The loss where the variant that is through first has ended; None where a variant does not know the axis."""
    if any(axis not in own for own in lines.values()):
        return None
    end = min(statistics.mean(line.x[-1] for line in own[axis]) for own in lines.values())
    own = lines[name][axis]
    if any(line.x[0] > end for line in own):
        return None
    return interval([_between(end, line) for line in own])


def _between(at: float, line: Line) -> float:
    """On a straight line over log x, as losses nearly fall; over x before the first x above 0."""
    x = np.array(line.x)
    later = x > 0
    if not later.any() or at < x[later][0]:
        return float(np.interp(at, x, line.y))
    return float(np.interp(np.log(at), np.log(x[later]), np.array(line.y)[later]))


def _to_reach(
    name: str, baseline: str, lines: Mapping[str, dict[str, list[Line]]], seen: Mapping[str, Speed | None]
) -> dict[str, Interval | None]:
    """Budgets that reach the baseline's last loss, as shares of its own; an axis that is not known is left out."""
    if name == baseline:
        return {"tokens": ONE, "time": ONE, "flops": ONE}
    own, theirs = lines[name], lines[baseline]
    axes = {"tokens": "tokens", "time": "seconds", "flops": "flops"}
    reached = {key: to_reach(own[axis], theirs[axis]) for key, axis in axes.items() if axis in own and axis in theirs}
    speed = seen[name]
    if speed is not None and speed.interleaved:  # with what the measurement itself leaves open
        tokens = reached.get("tokens")
        reached["time"] = quotient(tokens, speed.ratio) if tokens is not None else None
    return reached


def _fitting(speeds: Speeds | None, found: Comparable) -> tuple[Speeds | None, list[str]]:
    """The speeds, if every variant has been measured as it is; and a note, if not."""
    if speeds is None:
        return None, []
    other = [name for name, runs in found.kept.items() if speeds.settings.get(name) != digest(runs[0].config)]
    if other:
        return None, [f"speed.json was not used: it does not have {other[0]} with the settings of these runs."]
    return speeds, []


def _speed(name: str, baseline: str, kept: Mapping[str, Sequence[Run]], speeds: Speeds | None) -> Speed | None:
    if speeds is not None:
        own, theirs = speeds.variants[name], speeds.variants[baseline]
        ratio = ONE if name == baseline else speed_ratio(own.tokens_per_second, theirs.tokens_per_second)
        mfu = statistics.mean(own.mfu) if own.mfu else None
        return Speed(interval(own.tokens_per_second), ratio, mfu, own.memory_gib, interleaved=True)
    rates = {n: [r.tokens_per_second for r in kept[n] if r.tokens_per_second] for n in (name, baseline)}
    if not rates[name] or not rates[baseline]:
        return None
    times = statistics.mean(rates[name]) / statistics.mean(rates[baseline])
    mfus = [run.mfu for run in kept[name] if run.mfu is not None]
    memory = [run.memory_gib for run in kept[name] if run.memory_gib is not None]
    return Speed(
        interval(rates[name]),
        ONE if name == baseline else Interval(times),
        statistics.mean(mfus) if mfus else None,
        max(memory) if memory else None,
        interleaved=False,
    )


def _notes(speeds: Speeds | None, made: Sequence[Variant]) -> list[str]:
    notes = []
    if speeds is None:
        notes.append(
            "Times are those that each run saw, on a machine that may have been busier for some than for others: "
            "compare.py measure=8 measures the variants in turns."
        )
    else:
        notes.append(
            f"Speeds were measured in turns, {speeds.rounds} rounds of {speeds.steps} steps on {speeds.hardware} "
            f"(commit {speeds.commit}); times are tokens by that speed."
        )
    if any(v.word != "baseline" and v.to_reach.get("tokens") is not None for v in made):
        notes.append(
            "A variant reaches the baseline's final loss while its own learning rate is still high: a run whose "
            "schedule ended there would be better, so the shares of tokens, time and FLOPs are cautious, and so is the "
            "loss at equal time or FLOPs of a variant that is through later."
        )
    return notes


def _distinct(values) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))
