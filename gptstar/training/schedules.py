"""Learning-rate schedules: a factor of the maximum, a pure function of the step.

A new schedule is a function here and an entry in `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from gptstar.errors import UserError
from gptstar.model.own import completed


@dataclass
class ScheduleConfig:
    """How the learning rate moves over a run of `total` steps.

    name          cosine, wsd, constant, or exponential: the learning-rate range test
    warmup_steps  steps of linear warm-up from 0; null: 20, or half of a run of fewer than 40, which a run's whole
                  configuration puts in its place (`of`)
    final_ratio   the last learning rate as a share of the maximum
    hold_share    cosine: the last share of the run that stays at the final rate (GPT*: 0.1)
    decay_share   wsd: the last share of the run in which the rate falls linearly
    first_ratio   exponential: the first learning rate as a share of the maximum, which is the last
    own           settings that a schedule of one's own brings (docs/your_first_idea.md)
    """

    name: str = "cosine"
    warmup_steps: int | None = 0
    final_ratio: float = 0.1
    hold_share: float = 0.0
    decay_share: float = 0.2
    first_ratio: float = 1e-4
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            known = f"choose one of {', '.join(SCHEDULES)}, or name the file that adds it (ideas=[FILE.py])"
            raise ValueError(f"schedule.name={self.name!r} is unknown: {known}")
        self.own = completed(self.own, [SCHEDULES[self.name]], "schedule.own", SCHEDULES.values())
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")
        for key in ("final_ratio", "hold_share", "decay_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"schedule.{key}={getattr(self, key)} must lie between 0 and 1")
        if self.name == "exponential" and self.warmup_steps:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} must be 0 in a learning-rate range test "
                "(schedule.name=exponential), which rises by itself"
            )
        if not 0 < self.first_ratio < 1:
            raise ValueError(f"schedule.first_ratio={self.first_ratio} must lie above 0 and below 1")

    def of(self, total: int) -> ScheduleConfig:
        """As it is in a run of so many steps, with a number of warm-up steps."""
        if self.warmup_steps is not None:
            return self
        return replace(self, warmup_steps=0 if self.name == "exponential" else min(20, total // 2))


def cosine(config: ScheduleConfig, step: int, total: int) -> float:
    """Half a cosine from 1 to final_ratio (Loshchilov & Hutter, arXiv:1608.03983), then constant for hold_share."""
    start, end = config.warmup_steps or 0, total * (1 - config.hold_share)
    progress = min(1.0, (step - start) / max(1.0, end - start))
    return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(config: ScheduleConfig, step: int, total: int) -> float:
    """Constant, then linear to final_ratio over the last decay_share (Hu et al., arXiv:2404.06395)."""
    start = total * (1 - config.decay_share)
    progress = min(1.0, max(0.0, (step - start) / max(1.0, total - start)))
    return 1 - (1 - config.final_ratio) * progress


def constant(config: ScheduleConfig, step: int, total: int) -> float:
    """The maximum throughout."""
    return 1.0


def exponential(config: ScheduleConfig, step: int, total: int) -> float:
    """From first_ratio to 1, every step by the same factor (Smith, arXiv:1506.01186)."""
    return config.first_ratio ** (1 - step / max(1, total - 1))


SCHEDULES: dict[str, Callable[[ScheduleConfig, int, int], float]] = {
    "cosine": cosine,
    "wsd": warmup_stable_decay,
    "constant": constant,
    "exponential": exponential,
}


def learning_rate_factor(config: ScheduleConfig, step: int, total: int) -> float:
    """The factor for the step that follows `step` finished ones, of `total`. UserError for one that is none."""
    if config.warmup_steps and step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    factor = SCHEDULES[config.name](config, step, total)
    if not isinstance(factor, Real) or not 0 <= factor <= 1:
        raise UserError(
            f"schedule.name={config.name} gives {factor} at step {step} of {total}: a factor of optimizer.lr lies "
            "between 0 and 1"
        )
    return float(factor)
