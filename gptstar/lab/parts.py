"""An ablation's speed-up, taken apart: which step of it bought what.

The steps multiply, so their shares are of the logarithm of the whole; a whole that may be no speed-up has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gptstar.errors import UserError
from gptstar.lab.speed import Speeds
from gptstar.lab.statistics.intervals import quotient, speed_ratio
from gptstar.lab.study import Interval, Part, Variant

NOISE = 1.05  # a factor that a single measurement does not tell from 1
KEYS = {"name", "after", "until", "claimed"}


def parts_of(
    wanted: Sequence[Mapping[str, str]], made: Mapping[str, Variant], baseline: str, speeds: Speeds | None
) -> tuple[list[Part], list[str]]:
    """The steps that a study names, each from one variant to another, and the whole; and notes on what is missing.

    wanted   [{name, after, until, claimed}] in order, each beginning where the one before ended
    """
    for step in wanted:
        if set(step) != KEYS:
            raise UserError(f"a part of an ablation needs {', '.join(sorted(KEYS))}: study.yaml has {dict(step)}")
    missing = [name for step in wanted for name in (step["after"], step["until"]) if name not in made]
    if missing:
        return [], [f"The speed-up is not taken apart, because {missing[0]} has no run that can be compared."]
    first, last = wanted[0]["after"], wanted[-1]["until"]
    rows = [*wanted, {"name": "all of it", "after": first, "until": last, "claimed": ""}]
    throughput = [_throughput(row["after"], row["until"], made, speeds) for row in rows]
    to_loss = [_to_loss(row["after"], row["until"], made) if baseline == first else None for row in rows]
    parts = [
        Part(row["name"], t, _share(t, throughput[-1]), time, _share(time, to_loss[-1]), row["claimed"])
        for row, t, time in zip(rows, throughput, to_loss, strict=True)
    ]
    if baseline != first:
        return parts, [f"Times to loss are taken apart only against {first}: baseline={first} does that."]
    if to_loss[-1] is None:
        return parts, [
            f"{last} does not reach the loss of {first}, or times are not known: no time to loss to take apart."
        ]
    return parts, []


def _throughput(after: str, until: str, made: Mapping[str, Variant], speeds: Speeds | None) -> Interval | None:
    if speeds is not None:
        return speed_ratio(speeds.variants[until].tokens_per_second, speeds.variants[after].tokens_per_second)
    old, new = made[after].speed, made[until].speed
    return None if old is None or new is None else Interval(new.ratio.value / old.ratio.value)


def _to_loss(after: str, until: str, made: Mapping[str, Variant]) -> Interval | None:
    """How many times sooner, by the time to the baseline's final loss."""
    old, new = made[after].to_reach.get("time"), made[until].to_reach.get("time")
    return None if old is None or new is None else quotient(old, new)


def _share(part: Interval | None, whole: Interval | None) -> float | None:
    """None where the whole may be nothing: shares of nothing are any number."""
    if part is None or whole is None:
        return None
    low, high = (whole.low, whole.high) if whole.low and whole.high else (whole.value / NOISE, whole.value * NOISE)
    return None if low <= 1 <= high else math.log(part.value) / math.log(whole.value)
