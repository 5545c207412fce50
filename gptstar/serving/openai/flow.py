"""Many sequences of a request at once, answered whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

import gptstar
from gptstar.generation.continuation import TooLong
from gptstar.generation.engine import Event
from gptstar.generation.logprobs import TokenLogprob
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.answers import unless_gone
from gptstar.serving.models import Served
from gptstar.serving.openai.errors import Refused, described
from gptstar.serving.openai.writing import Piece, Spelling, Writing
from gptstar.serving.worker import Job

log = logging.getLogger(__name__)


class Usage(BaseModel):
    """Tokens read, each prompt once, and tokens chosen, those of sequences that lost to better ones too."""

    model_config = ConfigDict(extra="forbid")
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@contextlib.contextmanager
def refusing_what_is_too_long(param: str) -> Iterator[None]:
    """As OpenAI's clients know it. param: the field that the prompt is in."""
    try:
        yield
    except TooLong as error:
        raise Refused(
            400,
            f"this model reads {error.longest} tokens at most: {error.n_prompt} are in the {param} and "
            f"{error.asked} shall follow; shorten the {param} or lower max_tokens",
            param,
            "context_length_exceeded",
        ) from None


class Run:
    """A request that has been started. Sequence i of prompt p has the number p * n + i.

    writings   of each sequence
    """

    def __init__(self, jobs: list[Job], writings: list[Writing], seconds: float) -> None:
        self.jobs, self.writings, self.seconds = jobs, writings, seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    @classmethod
    async def start(
        cls,
        served: Served,
        prompts: Sequence[str | list[int]],
        settings: SamplingSettings,
        param: str,
        echo: bool = False,
        tell_tokens: bool = False,
    ) -> Run:
        """Refuses prompts that are too long, which are in the field `param`; raises what `Served.ask` does."""
        scored = settings.logprobs if echo and tell_tokens else None
        with refusing_what_is_too_long(param):
            jobs = await served.ask_all(prompts, settings, scored)
        run = cls(jobs, [], served.settings.request_timeout)
        tokenizer, spelling = served.tokenizer, Spelling(served.tokenizer)
        try:  # in a thread, for prompts may be long
            run.writings = await asyncio.to_thread(
                lambda: [
                    Writing(tokenizer, spelling, j.prompt, echo, tell_tokens) for j in jobs for _ in range(j.settings.n)
                ]
            )
        except BaseException:
            run.cancel()
            raise
        return run

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """What is decided, by number of the sequence. Leaving early ends the request."""
        scored: list[list[TokenLogprob] | None] = [None] * len(self.jobs)
        early: list[list[Event]] = [[] for _ in self.jobs]  # came before their prompt's scores did
        async with contextlib.aclosing(_merged(self.jobs)) as merged:
            async for at, event in merged:
                job = self.jobs[at]
                scored[at] = event.prompt_logprobs if scored[at] is None else scored[at]
                early[at].append(event)
                if job.n_scored is not None and scored[at] is None:
                    continue
                for ready in early[at]:
                    number = at * job.settings.n + ready.index
                    yield number, self.writings[number].feed(ready, scored[at])
                early[at] = []

    async def all(self) -> list[Piece]:
        """The whole answers."""
        whole = [Piece("", [], None) for _ in self.writings]
        async for number, piece in self.pieces():
            whole[number].add(piece)
        return whole

    @property
    def usage(self) -> dict[str, int]:
        """So far. White space taken back from the end of a prompt counts as the prompt's."""
        read = sum(len(job.prompt.tokens) + (job.prompt.first is not None) for job in self.jobs)
        written = sum(writing.n_written for writing in self.writings)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _expire(self) -> None:
        for job in self.jobs:
            job.put(TimeoutError(f"there was no time for more after {self.seconds:g} s: ask for fewer tokens"))

    def cancel(self) -> None:
        """Frees what it holds."""
        self._timer.cancel()
        for job in self.jobs:
            job.cancel()


async def _merged(jobs: list[Job]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of all jobs as they come, with the job's number."""
    if len(jobs) == 1:  # nothing to merge
        async for one in jobs[0]:
            yield 0, one
        return
    queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

    async def pump(at: int) -> None:
        try:
            async for event in jobs[at]:
                queue.put_nowait((at, event))
        except Exception as error:
            queue.put_nowait((at, error))

    tasks = [asyncio.create_task(pump(at)) for at in range(len(jobs))]
    try:
        left = sum(job.settings.n for job in jobs)
        while left:
            at, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            left -= event.done is not None
            yield at, event
    finally:
        for task in tasks:
            task.cancel()


def frame_of(served: Served, prefix: str, kind: str) -> dict[str, Any]:
    """What every object of one answer begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": f"gptstar-{gptstar.__version__}",
    }


async def answer_whole(
    request: Request, run: Run, frame: dict[str, Any], choices: Callable[[list[Piece]], list[dict[str, Any]]]
) -> JSONResponse:
    """Waits for all of it. `choices` and the JSON, which may be long, are made in a thread."""
    try:
        whole = await unless_gone(request, run.all(), run.seconds)
    finally:
        run.cancel()
    return await asyncio.to_thread(lambda: JSONResponse({**frame, "choices": choices(whole), "usage": run.usage}))


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, even before it has begun, what it was made from is closed."""

    def __init__(self, events: AsyncGenerator[str, None], run: Run, pieces: AsyncGenerator) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter is for nginx
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self.events, self.run, self.pieces = events, run, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.run.cancel()
            await self.events.aclose()
            await self.pieces.aclose()


async def answer_in_pieces(
    request: Request,
    run: Run,
    frame: dict[str, Any],
    choices: Callable[[int, Piece], list[dict[str, Any]]],
    tell_usage: bool,
) -> EventStream:
    """Begins once there is something to say: what goes wrong before that has a status of its own.

    choices: what is said of a sequence's piece, an event each. tell_usage: it comes in the end.
    """
    pieces = run.pieces()
    try:
        first = await unless_gone(request, anext(pieces), run.seconds)
    except BaseException:
        run.cancel()
        raise

    no_usage = {"usage": None} if tell_usage else {}  # yet

    async def events() -> AsyncGenerator[str, None]:
        try:
            for choice in choices(*first):
                yield sent({**frame, "choices": [choice], **no_usage})
            async for number, piece in pieces:
                for choice in choices(number, piece):
                    yield sent({**frame, "choices": [choice], **no_usage})
            if tell_usage:
                yield sent({**frame, "choices": [], "usage": run.usage})
            yield "data: [DONE]\n\n"
        except Exception as error:
            status, body, _ = described(error)
            if status == 500:
                log.exception("a stream has failed")
            yield sent(body)

    return EventStream(events(), run, pieces)


def sent(chunk: dict[str, Any]) -> str:
    """A server-sent event. ASCII: some clients take rare characters for line ends."""
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"
