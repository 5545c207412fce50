"""POST /api/stream: texts that come token by token, with what the model thought of each."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.types import Receive, Scope, Send

from gptstar.errors import UserError
from gptstar.generation.engine import Event
from gptstar.generation.randomness import fresh_seed, sequence_seed
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.answers import refusals, status_of
from gptstar.serving.asked import Body, Text, limited
from gptstar.serving.models import Models, Served
from gptstar.serving.openai.writing import Spelling
from gptstar.serving.worker import Job

LEAST = 1e-9  # of a probability: what a set that is to hold nothing holds is its first token
BIGGEST_SEED = 2**53 - 1  # whole numbers that JavaScript holds exactly
log = logging.getLogger(__name__)

router = APIRouter(tags=["page"])


class Asked(Body):
    """How the page's text goes on. A filter that is null is left out; 0 means what a slider at its end should mean."""

    model: Text | None = Field(None, description="one of /api/models; null: the first")
    prompt: Text
    max_new_tokens: StrictInt = Field(100, ge=0, le=2**31)
    temperature: float = Field(1.0, ge=0, le=100, strict=True, description="0: always the likeliest token")
    top_k: StrictInt | None = Field(None, ge=0, le=2**31, description="only the k likeliest tokens; 0: all")
    top_p: float | None = Field(
        None, ge=0, le=1, strict=True, description="nucleus: the likeliest tokens that reach p; 0: the likeliest alone"
    )
    tau: float | None = Field(
        None, ge=0, le=1, strict=True, description="the most typical tokens that reach tau; 0: the most typical alone"
    )
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, strict=True, description="1: none")
    n: StrictInt = Field(1, ge=1, le=2**31, description="samples")
    seed: StrictInt | None = Field(None, ge=-BIGGEST_SEED, le=BIGGEST_SEED, description="null draws a new one")
    top: StrictInt = Field(0, ge=0, le=10, description="alternatives that are reported with each token")

    def settings(self, seed: int, max_prompt_tokens: int | None) -> SamplingSettings:
        """For the engine."""
        return SamplingSettings(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=None if self.top_p is None else max(self.top_p, LEAST),
            tau=None if self.tau is None else max(self.tau, LEAST),
            repetition_penalty=self.repetition_penalty,
            truncate=True,
            max_prompt_tokens=max_prompt_tokens,
            n=self.n,
            seed=seed,
            logprobs=self.top,
        )


class Said(BaseModel):
    """One event; it is what `type` says and has no other fields than that."""

    model_config = ConfigDict(extra="forbid")


class Start(Said):
    """The first. prompt: as it is read; tokens: of it, without the `dropped` ones at its beginning; seeds: each
    sample's own, which gives that sample when it is asked for alone."""

    type: Literal["start"] = "start"
    model: str
    prompt: str
    tokens: int
    dropped: int
    seeds: list[int]


class Choice(Said):
    """A token. text: its own, `bytes:\\xe2\\x96` where it is part of a character; prob: the model's own, before any
    penalty, temperature or filter."""

    id: int
    text: str
    prob: float


class Chosen(Said):
    """Of sample number `index`. text: what is decided now; of a sample all of them together are its text."""

    type: Literal["token"] = "token"
    index: int
    text: str
    token: Choice
    top: list[Choice]


class End(Said):
    """Of a sample. finish_reason: length, end_of_text or stop."""

    type: Literal["end"] = "end"
    index: int
    finish_reason: str
    seed: int


class Failure(Said):
    """Nothing more comes. status: what the answer's would have been, had it not begun."""

    type: Literal["error"] = "error"
    error: str
    status: int


EVENTS = "Server-sent events, each a JSON object: " + "; ".join(
    f"{kind.model_fields['type'].default} ({', '.join(f for f in kind.model_fields if f != 'type')})"
    for kind in (Start, Chosen, End, Failure)
)
STREAM: dict[int | str, dict[str, Any]] = {200: {"description": EVENTS, "content": {"text/event-stream": {}}}}


class Stream(StreamingResponse):
    """Ends its job however it ends itself: a client that hangs up is noticed while it is sent nothing, too."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


@router.post(
    "/api/stream",
    response_class=StreamingResponse,  # says nothing of a media type: refusals are JSON
    responses=STREAM | refusals(401, 413, 422, 429, 500, 503, 504),
)
async def stream(request: Request, asked: Asked) -> Stream:
    """Goes on with a text; one that is too long loses its beginning."""
    served = _pick(request.app.state.models, asked.model)
    settings = served.settings
    limited(settings, asked.max_new_tokens, asked.n, "n")
    seed = fresh_seed() if asked.seed is None else asked.seed
    job = await served.ask(asked.prompt, asked.settings(seed, settings.max_input_token_length))
    seeds = [sequence_seed(seed, index) for index in range(asked.n)]
    return Stream(job, _events(served, job, seeds))


def _pick(models: Models, name: str | None) -> Served:
    try:
        return models.pick(name)
    except KeyError:
        raise UserError(f"model={name} is not served: it may be one of {', '.join(models.served)}") from None


async def _events(served: Served, job: Job, seeds: list[int]) -> AsyncIterator[bytes]:
    seconds = served.settings.request_timeout
    late = TimeoutError(f"not done within {seconds:g} s: ask for fewer tokens, or try again when less is asked")
    timer = asyncio.get_running_loop().call_later(seconds, job.put, late)
    try:
        prompt = job.prompt
        yield _line(
            Start(model=served.name, prompt=prompt.text, tokens=len(prompt.tokens), dropped=prompt.dropped, seeds=seeds)
        )
        spelling = Spelling(served.tokenizer)
        async for event in job:
            for chosen in _chosen(spelling, event):
                yield _line(chosen)
            if event.done is not None:
                yield _line(End(index=event.index, finish_reason=event.done.finish_reason, seed=event.done.seed))
    except Exception as error:
        status, reason, _ = status_of(error)
        if status == 500:
            log.exception("a stream has failed")
        yield _line(Failure(error=reason, status=status))
    finally:
        timer.cancel()


def _line(said: Said) -> bytes:
    return b"data: " + said.model_dump_json().encode() + b"\n\n"


def _chosen(spelling: Spelling, event: Event) -> list[Chosen]:
    """One a token; the text comes with the last of them."""
    found = []
    for number, one in enumerate(event.logprobs, 1):
        found.append(
            Chosen(
                index=event.index,
                text=event.text if number == len(event.logprobs) else "",
                token=_choice(spelling, one.token, one.logprob),
                top=[_choice(spelling, token, logprob) for token, logprob in one.top],
            )
        )
    return found


def _choice(spelling: Spelling, token: int, logprob: float) -> Choice:
    return Choice(id=token, text=spelling.text(token), prob=float(f"{math.exp(logprob):.4g}"))
