"""Signals as a request: the step in progress finishes, the run saves itself, then it ends.

SIGINT and SIGTERM, and SIGUSR2, by which submitit learns that Slurm is about to end a job: it is passed on to submitit,
which queues the job again, once the run has saved itself (`saved`).
"""

from __future__ import annotations

import signal
import time
from types import FrameType

LAST_WORDS = 60.0  # seconds


class Interrupt:
    """While entered, the first signal sets `requested` to its name; a second ends at once.

    launched: whether a launcher passes signals on. Its SIGTERM after a Ctrl-C that has reached this process too is no
    second request then.
    """

    def __init__(self, launched: bool = False) -> None:
        self.requested: str | None = None
        self.saved = False
        self.launched = launched

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.saved and self.requested == "SIGUSR2" and callable(self._before[signal.SIGUSR2]):
            signal.raise_signal(signal.SIGUSR2)
            time.sleep(LAST_WORDS)  # where this is not the task that queues the job again: Slurm ends them all then

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self.launched and number == signal.SIGTERM:
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
