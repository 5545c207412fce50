"""The learning-rate range test (Smith, arXiv:1506.01186): the rate grows at every step until the loss explodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from gptstar.figure import BLUE, GREEN, RED, new_figure, save_figure

MEMORY = 0.9  # share of the smoothed loss that stays at a step
EXPLODED = 1.0  # nats above the lowest smoothed loss
SAFETY = 3.0  # the rate at the lowest loss is on the edge; this many times less is usually a good maximum


@dataclass
class RangeTest:
    """Losses as they come; the test is over when the smoothed one has exploded."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    exploded: bool = False

    def feed(self, rate: float, loss: float) -> None:
        """One step's learning rate and loss, nats a token."""
        if not math.isfinite(loss):
            self.exploded = True
            return
        before = self.smoothed[-1] if self.smoothed else loss
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(MEMORY * before + (1 - MEMORY) * loss)
        self.exploded = self.smoothed[-1] > min(self.smoothed) + EXPLODED

    @property
    def best(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.rates[min(range(len(self.smoothed)), key=self.smoothed.__getitem__)]

    @property
    def suggested(self) -> float:
        """A maximum to try, two digits of it."""
        return float(f"{self.best / SAFETY:.1e}")

    def conclusion(self) -> str:
        """In words."""
        if not self.rates:
            return "the loss was not finite at the first step: lower optimizer.lr"
        if self.exploded:
            end = f"explodes at {self.rates[-1]:.1e}"
        elif self.best > self.rates[-1] / 2:
            end = f"still falls at {self.rates[-1]:.1e}: raise optimizer.lr to see where it explodes"
        else:
            end = f"has not exploded at {self.rates[-1]:.1e}"
        return f"loss is lowest at learning rate {self.best:.1e} and {end}; try optimizer.lr={self.suggested:.1e}"

    def draw(self, output: Path, title: str) -> None:
        """Loss over learning rate, PNG."""
        figure = new_figure(8, 4.5)
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(self.rates, self.smoothed, color=BLUE, label="training loss (smoothed)")
        axes.axvline(self.best, color=RED, linestyle=":", label=f"lowest, {self.best:.1e}")
        axes.axvline(self.suggested, color=GREEN, linestyle="--", label=f"suggested, {self.suggested:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats/token)", title=title)
        axes.set_ylim(min(self.losses) - 0.2, max(self.losses[0], self.smoothed[-1]) + 0.4)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        save_figure(figure, output)
