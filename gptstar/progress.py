"""How far a long piece of work is: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0


@contextmanager
def progress(console: Console | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how much more of `total` is done. Without a console nothing is shown."""
    if console is None or not total:
        yield lambda amount: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield _Lines(console, title, total).advance


class _Lines:
    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.done = 0
        self.start = self.printed = time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= PLAIN_SECONDS:
            self.printed = now
            left = timedelta(seconds=round((now - self.start) * (self.total - self.done) / self.done))
            text = f"{self.title}  {self.done / self.total:.0%}  ETA {left}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
