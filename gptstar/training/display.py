"""What a person sees of a run: a live line in a terminal, a line every few seconds elsewhere, and the log file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_SECONDS = 5.0


class Display:
    """Notes go to the console and to RUN/train.log; progress to the console alone.

    log: None where another rank writes it.
    """

    def __init__(self, console: Console, log: Path | None) -> None:
        self.console = console
        self._log = (log or Path(os.devnull)).open("a", encoding="utf-8")
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._printed = 0.0
        self._step_seconds = 0.0
        self._shown = 0

    def note(self, text: str) -> None:
        """One thing worth keeping."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
        self._log.flush()

    @contextmanager
    def running(self, step: int, total: int) -> Iterator[None]:
        """Shows progress from `step` to `total` while entered."""
        self._total = total
        if not self.console.is_terminal:
            yield
            return
        columns = (BarColumn(bar_width=24), TextColumn("{task.fields[state]}", markup=False))
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=total, completed=step, state="")
            yield
        self._progress = None

    def step(self, step: int, loss: float, seconds: float, tokens_per_second: float, mfu: float | None) -> None:
        """After each optimizer step; the rates shown are smoothed over about 20 steps.

        The first step, in which memory is touched and kernels are compiled, is forgotten at the second.
        """
        weight = 1.0 if self._shown < 2 else max(0.05, 1 / self._shown)
        self._step_seconds = weight * seconds + (1 - weight) * self._step_seconds
        self._shown += 1
        scale = seconds / self._step_seconds
        left = timedelta(seconds=round((self._total - step) * self._step_seconds))
        state = f"step {step}/{self._total}  loss {loss:.3f}  {tokens_per_second * scale:,.0f} tokens/s"
        state += f"  MFU {100 * mfu * scale:.0f}%" if mfu is not None else ""
        state += f"  ETA {left}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, state=state)
        elif time.monotonic() - self._printed > PLAIN_SECONDS or step == self._total:
            self._printed = time.monotonic()
            self.console.print(state, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Closes the log file."""
        self._log.close()
