"""Processes that take turns: what a benchmark races, each with its own memory, allocator and threads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Contestant:
    """This benchmark's script again, as `--worker NAME ...`: it says "ready", then answers a line for every line."""

    def __init__(self, script: str, name: str, *arguments: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [sys.executable, script, "--worker", name, *arguments]
        self.name = name
        self.process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self._line()

    def turn(self, request: Any = None) -> Any:
        """What it answers, both sides in JSON."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early: run this script with --worker {self.name} to see why")
        return line


def serve(answer: Callable[[Any], Any]) -> None:
    """A worker's side: tells that it is ready and answers until there is nothing more to answer."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
