"""Refusals as OpenAI's clients understand them."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from gptstar.errors import UserError
from gptstar.serving.answers import SAID, short, status_of

PREFIX = "/v1/"  # paths whose refusals look like this
CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded", 504: "timeout"}


class Problem(BaseModel):
    """message: in one line, with the remedy; param: the field that is meant; code: one word for programs."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error")
    param: str | None
    code: str | None


class Failure(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(extra="forbid")
    error: Problem


class Refused(Exception):
    """What this server does not do: a status, one line, the field that is meant, and a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def problem(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """A `Failure` as JSON has it."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def refuse(error: Exception) -> JSONResponse:
    """The answer to whatever went wrong."""
    status, body, headers = described(error)
    return JSONResponse(body, status, headers)


def described(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    if isinstance(error, Refused):
        return error.status, problem(error.status, short(str(error)), error.param, error.code), {}
    if isinstance(error, RequestValidationError):
        return 400, problem(400, *_first_fault(error)), {}
    status, message, headers = status_of(error)
    status = 400 if isinstance(error, UserError) else status
    return status, problem(status, message), headers


def _first_fault(error: RequestValidationError) -> tuple[str, str | None]:
    fault: dict[str, Any] = error.errors()[0]
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {short(str(fault.get('ctx', {}).get('error', said)))}", None
    if fault["loc"] == ("body",) and isinstance(fault.get("input"), str | bytes):
        return "the body must be a JSON object, and come with Content-Type: application/json", None
    place, unknown = "", fault["type"] == "unknown_field"
    for part in (*fault["loc"][1:], *([fault["ctx"]["name"]] if unknown else [])):  # the first one says body
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    place = short(place, 100)
    value = fault.get("input")
    shown = f"={short(repr(value), 60)}" if isinstance(value, str | int | float | bool) else ""
    if unknown:
        said, shown = "there is no such field: leave it out", ""
    elif fault["type"] == "none_required":
        said = "this server cannot do that: leave it out"
    return (f"{place}{shown}: {said}" if place else f"the body: {said}"), place or None


def refusals(*more: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description of a route."""
    said = SAID | {404: "no such model", "4XX": SAID[422]}
    statuses: tuple[int | str, ...] = (401, 429, 500, *more, "4XX")
    return {status: {"model": Failure, "description": said[status]} for status in statuses}
