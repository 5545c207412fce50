"""What is known of the request that is being answered, for its log line and for the metrics."""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar

from gptstar.serving.worker import Job

SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Record:
    """One request.

    id       the client's, where it sent a sane one, or made here; the answer carries it
    route    the template it matched, "other" for none: no log or label holds what a client made up
    status   of the answer; 499 where the client hung up before there was one
    seconds  from its headers to the end of its answer
    client   the number of its API key among those the operator has set
    jobs     what it made a model do
    """

    def __init__(self, method: str, given_id: str = "") -> None:
        self.id = given_id if SANE.fullmatch(given_id) else uuid.uuid4().hex
        self.method = method
        self.route = "other"
        self.status = 499
        self.started = time.monotonic()
        self.seconds = 0.0
        self.client: int | None = None
        self.model: str | None = None
        self.jobs: list[Job] = []

    def asked(self, model: str, jobs: list[Job]) -> None:
        """A model has been asked for something."""
        self.model = model
        self.jobs += jobs

    @property
    def prompt_tokens(self) -> int:
        """Of all its prompts."""
        return sum(len(job.prompt.tokens) for job in self.jobs)

    @property
    def new_tokens(self) -> int:
        """Of all sequences it was given."""
        return sum(job.n_written for job in self.jobs)

    @property
    def first_token(self) -> float | None:
        """Seconds until there was one."""
        firsts = [job.first for job in self.jobs if job.first is not None]
        return min(firsts) - self.started if firsts else None


current: ContextVar[Record | None] = ContextVar("current", default=None)
