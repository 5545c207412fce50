"""What a setting may be in a search: one of several values, or any number between two bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Choice:
    """One of `options`, as written on a command line."""

    options: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, key: str) -> str:
        """The value of a trial."""
        return trial.suggest_categorical(key, list(self.options))

    def place(self, value: object) -> str | None:
        """A configuration's value as one of the options; None: it is not."""
        words = {True: "true", False: "false", None: "null"}
        word = words[value] if isinstance(value, bool | None) else str(value)
        return word if word in self.options else None

    def ends(self) -> tuple[str, ...]:
        """Values that show whether the setting can be made at all."""
        return self.options


@dataclass(frozen=True)
class Between:
    """A number between two, these included; log: uniform in its logarithm; whole: an integer."""

    low: float
    high: float
    log: bool
    whole: bool

    def suggest(self, trial: optuna.Trial, key: str) -> str:
        """The value of a trial, in four digits."""
        if self.whole:
            return str(trial.suggest_int(key, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(key, self.low, self.high, log=self.log):.4g}"

    def place(self, value: object) -> float | None:
        """A configuration's value, where it lies between them."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= float(str(value)) <= self.high:
            return None
        return int(float(str(value))) if self.whole else float(str(value))

    def ends(self) -> tuple[str, ...]:
        """Values that show whether the setting can be made at all."""
        return (str(self.low), str(self.high))
