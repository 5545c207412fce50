"""Warm-up of the batch size and of the sequence length: pure functions of the step.

Both rise in stages, equally many steps each, and reach their last value after `steps` steps.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class BatchRamp:
    """The sequences of each step: `first`, then `increment` more a stage, until `last` after `steps` steps.

    Brown et al. (arXiv:2005.14165) raise GPT-3's batch this way; Megatron-LM calls it --rampup-batch-size. steps=0:
    `last` throughout. Every size is a multiple of `increment`: one that ranks and micro-batches divide is safe.
    """

    first: int
    last: int
    increment: int
    steps: int

    def __post_init__(self) -> None:
        for key in ("first", "last", "increment"):
            if getattr(self, key) < 1:
                raise ValueError(f"trainer.batch_warmup.{key}={getattr(self, key)} must be at least 1")
        if self.steps < 0:
            raise ValueError(f"trainer.batch_warmup.steps={self.steps} must not be negative")
        if self.first > self.last:
            raise ValueError(
                f"trainer.batch_warmup.first={self.first} must not be larger than the batch it leads to ({self.last})"
            )
        for key in ("first", "last"):
            if getattr(self, key) % self.increment:
                raise ValueError(
                    f"trainer.batch_warmup.increment={self.increment} must divide the {key} batch size "
                    f"({getattr(self, key)} sequences)"
                )
        if 0 < self.steps < len(self.stages) - 1:
            raise ValueError(
                f"trainer.batch_warmup.steps={self.steps} is too short for {len(self.stages) - 1} stages of "
                f"{self.increment} sequences: give each a step, or a larger increment"
            )

    @cached_property
    def stages(self) -> list[tuple[int, int]]:
        """The step at which each batch size begins, and the size."""
        return _stages(list(range(self.first, self.last + 1, self.increment)), self.steps)

    def size(self, step: int) -> int:
        """Sequences of a step (from 0)."""
        return _value(self.stages, step)

    def position(self, step: int) -> int:
        """Sequences of all steps before this one."""
        more = sum(max(0, step - begin) for begin, _ in self.stages[1:])
        return self.stages[0][1] * step + self.increment * more

    def steps_for(self, n_sequence: int) -> int:
        """Whole steps that so many sequences are enough for."""
        positions = [self.position(begin) for begin, _ in self.stages]
        stage = bisect_right(positions, n_sequence) - 1
        begin, size = self.stages[stage]
        return begin + (n_sequence - positions[stage]) // size


@dataclass(frozen=True)
class LengthRamp:
    """The sequence length of each step: `first`, doubled in stages until `last` after `steps` steps.

    Li et al., "The Stability-Efficiency Dilemma" (arXiv:2108.06084); here a row of `last` tokens becomes several
    shorter ones, so a step has as many tokens as without, and every token is still seen once. Where doubling meets a
    length that does not divide `last`, the next longer one that does is taken. steps=0: `last` throughout.
    """

    first: int
    last: int
    steps: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.last % self.first:
            raise ValueError(f"trainer.length_warmup.first={self.first} must divide the sequence length of {self.last}")
        if self.steps < 0:
            raise ValueError(f"trainer.length_warmup.steps={self.steps} must not be negative")
        if 0 < self.steps < len(self.stages) - 1:
            raise ValueError(
                f"trainer.length_warmup.steps={self.steps} is too short for {len(self.stages) - 1} stages: "
                "give each a step, or begin with longer sequences"
            )

    @cached_property
    def stages(self) -> list[tuple[int, int]]:
        """The step at which each length begins, and the length."""
        lengths = [self.first]
        while lengths[-1] < self.last:
            lengths.append(next(n for n in range(2 * lengths[-1], self.last + 1) if self.last % n == 0))
        return _stages(lengths, self.steps)

    def length(self, step: int) -> int:
        """Tokens in a row of a step (from 0)."""
        return _value(self.stages, step)


def _stages(values: list[int], steps: int) -> list[tuple[int, int]]:
    """Each value with its first step: all but the last share `steps` as equally as whole steps allow."""
    if steps == 0:
        return [(0, values[-1])]
    n = max(1, len(values) - 1)
    return [(-(-i * steps // n), value) for i, value in enumerate(values)]


def _value(stages: list[tuple[int, int]], step: int) -> int:
    return stages[bisect_right([begin for begin, _ in stages], step) - 1][1]
