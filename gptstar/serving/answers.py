"""From a job to an HTTP answer: who has gone away, what took too long, and what each error is called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from gptstar.errors import UserError
from gptstar.generation.continuation import TooLong
from gptstar.serving.models import NotReady
from gptstar.serving.worker import Busy, Closed

T = TypeVar("T")

MOST_SAID = 300  # characters of a reason: what was sent is not sent back whole
SAID: dict[int | str, str] = {  # of each status, in the OpenAPI description
    401: "no valid API key",
    404: "there is no such thing here",
    408: "the body did not arrive in time",
    413: "the body is too large",
    422: "something in the request cannot be",
    429: "too many requests: Retry-After says when to come again",
    500: "a mistake of the server",
    503: "a model is not ready, or the server ends",
    504: "not answered in time",
}


class Refusal(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(extra="forbid")
    error: str = Field(description="in one line: the thing, its value, the remedy")


class Gone(Exception):
    """The client has hung up: nobody hears an answer."""


async def unless_gone(request: Request, answer: Awaitable[T], seconds: float) -> T:
    """What `answer` gives. Cancels it and raises Gone where the client hangs up, TimeoutError after `seconds`."""
    work = asyncio.ensure_future(answer)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if watch.done():
            watch.result()  # a body that nobody reads may be refused too
            raise Gone
        raise TimeoutError(f"not answered within {seconds:g} s: ask for fewer tokens, or try again when less is asked")
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def status_of(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, reason and headers of what can go wrong; 500 for a fault of ours, whose text stays in the log."""
    if isinstance(error, TooLong):  # in no contract's own words
        said = f"the text has {error.n_prompt} tokens, {error.asked} shall follow, and the model reads {error.longest}"
        return 422, f"{said}: shorten the text, or ask for fewer", {}
    if isinstance(error, UserError):
        return 422, short(str(error)), {}
    if isinstance(error, RequestValidationError):
        return 422, _first_fault(error), {}
    if isinstance(error, Busy):
        return 429, str(error), {"Retry-After": str(error.seconds)}
    if isinstance(error, NotReady):
        return 503, str(error), {"Retry-After": "5"}
    if isinstance(error, Closed):
        return 503, str(error), {"Retry-After": "10"}
    if isinstance(error, TimeoutError):
        return 504, str(error), {}
    if isinstance(error, HTTPException):
        return error.status_code, short(str(error.detail)), dict(error.headers or {})
    return 500, "the server has made a mistake: its log says which", {}


def refusal(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer of the REST and the demo contract."""
    return JSONResponse({"error": reason}, status, headers)


def _first_fault(error: RequestValidationError) -> str:
    fault: dict[str, Any] = error.errors()[0]
    if fault["loc"][0] == "body":
        if fault["type"] == "json_invalid":
            return short(f"the body is not JSON: {fault['ctx']['error']} (character {fault['loc'][-1]})")
        if isinstance(fault.get("input"), bytes):
            return "the body must be JSON, and come with Content-Type: application/json"
        if fault["loc"] == ("body",) and fault["type"] == "missing":
            return "the body is missing, or null: send a JSON object"
    place = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query"))
    value = fault.get("input")
    shown = f"={value!r}" if isinstance(value, str | float | bool) or _short_int(value) else ""
    said = fault["msg"].removeprefix("Value error, ")
    return short(f"{place}{short(shown, 60)}: {said}" if place else said)


def _short_int(value: object) -> bool:
    """Python writes no whole number of more than 4,300 digits."""
    return isinstance(value, int) and value.bit_length() < 200


def short(text: str, length: int = MOST_SAID) -> str:
    """Without what no JSON may hold, and cut."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description of a route."""
    return {status: {"model": Refusal, "description": SAID[status]} for status in statuses}
