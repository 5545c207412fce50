"""What a comparison has found, as plain data: study.json, and what report.md, report.html and the plots are made of.

Every figure is decided here once; those who render it only choose words.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gptstar.files import replace_text


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% confidence interval; no bounds where there is nothing to tell them from."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One run's validation losses: x in the axis's unit, y in the study's metric."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Curve:
    """The mean over seeds of a variant's validation losses, and its pointwise 95% band (None: a single seed)."""

    x: list[float]
    mean: list[float]
    low: list[float] | None
    high: list[float] | None
    lines: list[Line]


@dataclass(frozen=True)
class Speed:
    """Throughput of a variant. interleaved: measured in turns with the others, on a machine as it was; otherwise as
    each run saw it.
    """

    tokens_per_second: Interval
    ratio: Interval  # to the baseline's
    mfu: float | None
    memory_gib: float | None
    interleaved: bool


@dataclass(frozen=True)
class Variant:
    """What a study says of one of its variants.

    final      mean final loss in the study's metric; equal_time, equal_flops: the same at the budget of the cheapest
    effect     its difference from the baseline's, in percent (below 0: better); p: of there being none
    word       better, worse, no difference seen, cannot say, or baseline; verdict: in a sentence
    more_seeds how many more of each would show a difference of 0.5% (0: enough now; None: cannot say)
    to_reach   budget that reaches the baseline's last validation loss, as a share of the baseline's: {"tokens", "time",
               "flops"}; None where no seed reaches it, without an axis that is not known
    difference of its configuration from the baseline's: {key: (baseline's value, its own)}
    curves     by axis: {"tokens", "seconds", "flops"}
    """

    name: str
    why: str
    seeds: list[str]
    parameters: int | None
    flops_per_token: int | None
    tokens: int
    final: Interval
    equal_time: Interval | None
    equal_flops: Interval | None
    effect: Interval | None
    p: float | None
    word: str
    verdict: str
    more_seeds: int | None
    to_reach: dict[str, Interval | None]
    speed: Speed | None
    difference: dict[str, tuple]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Part:
    """One step of an ablation: what it adds to the speed-up, as a factor and as a share of the whole (in logarithms).

    throughput   tokens a second; to_loss: time to the first variant's final loss, how many times sooner
    claimed      what the authors of the idea say, in words
    """

    name: str
    throughput: Interval | None
    throughput_share: float | None
    to_loss: Interval | None
    to_loss_share: float | None
    claimed: str


@dataclass(frozen=True)
class Study:
    """One comparison.

    metric     loss (nats a token) or bits_per_byte
    test       how differences were tested, in words
    excluded   {source: why}; notes: what a reader has to know
    hardware, commits, command   what the runs ran on and how this was made
    """

    title: str
    metric: str
    baseline: str
    test: str
    variants: list[Variant]
    parts: list[Part] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hardware: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    command: str = ""
    why: str = ""
    training_command: str = ""

    @property
    def unit(self) -> str:
        """Of the metric."""
        return "nats/token" if self.metric == "loss" else "bits/byte"

    def write(self, path: Path) -> None:
        """As JSON."""
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")
