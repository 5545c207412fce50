"""How many a second, of late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SECONDS = 10.0  # what is so long ago counts 1/e


class Speed:
    """total: all that was added; now: a second, an exponentially weighted mean."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self._clock, self._then, self._mean = clock, clock(), 0.0

    def add(self, n: int) -> None:
        """So many more."""
        self.total += n
        self._mean, self._then = self.now + n / SECONDS, self._clock()

    @property
    def now(self) -> float:
        """A second."""
        return self._mean * math.exp((self._then - self._clock()) / SECONDS)
