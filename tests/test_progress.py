"""A line now and then where there is no terminal, a bar where there is one."""

import io

import pytest
from rich.console import Console

from gptstar import progress as module
from gptstar.progress import progress


def test_lines_tell_share_and_time_left(monkeypatch):
    clock = iter([0.0, 5.0, 20.0, 21.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress(Console(file=out, width=100), "piqa", 100) as advance:
        for amount in (10, 30, 1, 19):
            advance(amount)
    assert out.getvalue().splitlines() == ["piqa  40%  ETA 0:00:30", "piqa  60%  ETA 0:00:20"]


@pytest.mark.parametrize("console", [None, Console(file=io.StringIO(), force_terminal=True)])
def test_a_bar_and_silence_take_the_same_calls(console):
    with progress(console, "piqa", 10) as advance:
        advance(4)
        advance(6)
    with progress(console, "piqa", 0) as advance:
        advance(0)
    if console is not None:
        assert "piqa" in console.file.getvalue()
