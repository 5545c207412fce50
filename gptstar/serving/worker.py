"""One thread that decodes everything, and how asynchronous code speaks with it.

The thread alone touches the engine. Requests and cancellations reach it through an inbox that it empties between
rounds; events go back through the event loop. Nobody who reads slowly holds it up: events wait in the job's own queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gptstar.generation.continuation import Prompt
from gptstar.generation.engine import Engine, Event
from gptstar.generation.generate import Generation
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.speed import Speed

FAILED = "decoding has failed: the server's log says how"

log = logging.getLogger(__name__)


class Busy(Exception):
    """As many wait as may: come again after so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy: try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The server ends, or its engine has failed: there will be no answer."""


class Job:
    """A request on its way: iterate over its events, each once, or wait for `all`. Leaving early means `cancel`.

    prompt     as the model reads it
    settings   as asked for
    ended      its sequences that have come to their end
    """

    def __init__(self, worker: Worker, prompt: Prompt, settings: SamplingSettings, n_scored: int | None) -> None:
        self.worker, self.prompt, self.settings, self.n_scored = worker, prompt, settings, n_scored
        self.request = -1  # the engine's number
        self.n_running = settings.n  # sequences without an end
        self.asked = time.monotonic()
        self.first: float | None = None  # when the first event came
        self.n_written = 0
        self.ended: list[Generation] = []
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        n_left = self.settings.n
        try:
            while n_left:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                n_left -= event.done is not None
                yield event
        finally:
            if n_left:
                self.cancel()

    async def all(self) -> list[Generation]:
        """All sequences, in order, once all have ended."""
        done = {event.index: event.done async for event in self if event.done is not None}
        return [done[index] for index in sorted(done)]

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.worker.cancel(self)

    def put(self, event: Event | Exception) -> None:
        """Called by the worker, in the event loop's thread."""
        if isinstance(event, Event):
            self.first = self.first or time.monotonic()
            self.n_written += len(event.tokens)
            if event.done is not None:
                self.ended.append(event.done)
        self._events.put_nowait(event)


@dataclass
class Load:
    """What a worker is at: sequences decoded and waiting, rows in use, and tokens held, of those there is room for."""

    running: int
    waiting: int
    rows: int
    tokens: int
    capacity: int


class Worker:
    """Serves jobs over one engine. Made and used in an event loop's thread; `close` ends its own thread.

    max_queue   sequences that may wait for a row; beyond that `start` raises Busy
    finished    called with each job that has ended, was cancelled or failed, and how: done, cancelled or failed
    """

    def __init__(
        self, engine: Engine, max_queue: int = 64, finished: Callable[[Job, str], object] = lambda job, how: None
    ) -> None:
        self.engine, self.max_queue, self.finished = engine, max_queue, finished
        self.error: BaseException | None = None  # what the engine died of
        self.speed = Speed()  # of all tokens
        self._jobs: set[Job] = set()  # without an end yet
        self._by_request: dict[int, Job] = {}  # the thread's own
        self._inbox: deque[tuple[str, Job | None]] = deque()
        self._news = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds_per_sequence = 1.0  # a moving average
        self.closing = False  # takes nothing new
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def prepare(self, prompt: str | list[int], settings: SamplingSettings) -> Prompt:
        """Checks and tokenises, in any thread. Raises UserError."""
        return self.engine.prepare(prompt, settings)

    def start_all(
        self, prompts: list[Prompt], settings: SamplingSettings, prompt_logprobs: int | None = None
    ) -> list[Job]:
        """Queues the jobs of one request, all or none. Raises Busy, and Closed where the server ends."""
        if self.closing or self.error is not None:
            raise Closed("the server is shutting down" if self.closing else FAILED)
        pending = self.pending
        # A request that is alone is served, however many sequences it wants.
        if pending and pending + settings.n * len(prompts) > self.engine.max_rows + self.max_queue:
            raise Busy(self.seconds_to_wait(pending))
        jobs = [Job(self, prompt, settings, prompt_logprobs) for prompt in prompts]
        self._jobs.update(jobs)
        self._idle.clear()
        for job in jobs:
            self._tell("start", job)
        return jobs

    @property
    def pending(self) -> int:
        """Sequences that have not ended."""
        return sum(job.n_running for job in self._jobs)

    def seconds_to_wait(self, pending: int) -> int:
        """About how long until there is room."""
        return max(1, min(60, round(self._seconds_per_sequence * pending / self.engine.max_rows)))

    def cancel(self, job: Job) -> None:
        """Frees what a job holds, in the next round. One that has ended is no error."""
        if job in self._jobs:
            self._end(job, "cancelled")
            self._tell("cancel", job)

    @property
    def load(self) -> Load:
        """Read without a lock: numbers of one moment, more or less."""
        engine = self.engine
        rows = len(engine.writing) + len(engine.reading)
        waiting = max(0, self.pending - rows)
        held = sum(engine.cache.lengths[s.row] for s in (*engine.writing, *engine.reading) if s.row >= 0)
        return Load(rows, waiting, engine.max_rows, held, engine.max_rows * engine.capacity)

    async def drain(self, seconds: float) -> None:
        """Takes nothing new and lets what is there come to its end; what has not by then is told so."""
        self.closing = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            self._fail(Closed("the server is shutting down and there was no more time for this request"))

    def close(self) -> None:
        """Ends the thread; jobs that are left are told so."""
        self.closing = True
        self._fail(Closed("the server is shutting down"))
        self._tell("close", None)
        self._thread.join()

    def _fail(self, error: Exception) -> None:
        for job in list(self._jobs):
            job.put(error)
            self._end(job, "failed")
            self._tell("cancel", job)

    def _end(self, job: Job, how: str) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()
        self.finished(job, how)

    def _tell(self, what: str, job: Job | None) -> None:
        self._inbox.append((what, job))
        self._news.set()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while self._obey():
                if self.engine.idle:
                    self._news.wait()
                    continue
                events = self.engine.step()
                if events:
                    self._say(self._deliver, [(self._by_request[e.request], e) for e in events])
        except BaseException as error:
            self._say(self._die, error)

    def _obey(self) -> bool:
        """Does what the inbox says; False to end."""
        self._news.clear()
        while self._inbox:
            what, job = self._inbox.popleft()
            if job is None:
                return False
            if what == "start":
                job.request = self.engine.submit_ready(job.prompt, job.settings, job.n_scored)
                self._by_request[job.request] = job
            elif job.request >= 0:
                self.engine.cancel(job.request)
                self._by_request.pop(job.request, None)
        return True

    def _say(self, what: Callable, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to hear it
            self._inbox.append(("close", None))

    # What follows runs in the event loop again.

    def _deliver(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            if job not in self._jobs:
                continue
            job.put(event)
            self.speed.add(len(event.tokens))
            if event.done is not None:
                taken = (time.monotonic() - job.asked) / job.settings.n
                self._seconds_per_sequence += 0.1 * (taken - self._seconds_per_sequence)
                job.n_running -= 1
                if not job.n_running:
                    self._end(job, "done")
                    self._tell("cancel", job)  # forget its number

    def _die(self, error: BaseException) -> None:
        self.error = error
        log.error("decoding has failed, and nothing more can be decoded", exc_info=error)
        self._fail(Closed(FAILED))
