"""The one error for what a user can mend: a wrong value, a missing file, a damaged shard."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE = 3.0  # seconds
LONGEST_REASON = 200  # characters
# How a door ends where all is not well.
EXIT_BAD_INPUT = 2
EXIT_NONFINITE = 3  # the loss became infinite
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: interrupted and saved, start it again with resume=


class UserError(Exception):
    """Says in one line what is wrong: the thing, its value, the remedy. Doors print it without a traceback."""


def reason(error: object) -> str:
    """What an error says, in one line that stands in another message; its kind where it says nothing."""
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


@contextmanager
def valid_json(where: str) -> Iterator[None]:
    """For what reads a line of a file that a person made; `where` names file and line."""
    try:
        yield
    except ValueError as error:  # not UTF-8 is one too
        raise UserError(f"{where}: no valid JSON ({error}): mend or remove the line") from error


def rank_by_launcher() -> str:
    """What torchrun or srun call this process; "0" without them."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"


def say_interrupted(continues: bool = False) -> int:
    """One line on stderr after a Ctrl-C; what the process is to end with.

    continues: whether what is finished is on disk and not done again.
    """
    more = ": the same command continues where this one stopped" if continues else ""
    print(f"interrupted{more}", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


def complain(error: object) -> None:
    """One line on stderr.

    Of several ranks that fail alike the first is to be heard: the others wait until its end has ended them too, and
    speak only where it goes on.
    """
    rank = rank_by_launcher()
    if rank != "0":
        time.sleep(GRACE)
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:  # what torchrun prints in its table of failures
        message = {"message": f"error: {error}", "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": message}))
    print(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}", file=sys.stderr, flush=True)
