"""Middleware: whoever has no API key may see whether the server lives and its page, and ask nothing."""

from __future__ import annotations

import hashlib
import hmac

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gptstar.serving.faults import Refuse
from gptstar.serving.records import current

OPEN = ("/", "/health")  # the page, which has a field for the key
OPEN_BELOW = "/page/"  # what the page is made of


def is_open(scope: Scope) -> bool:
    """Whether no key is needed: these answers are the same for everybody and cost nothing."""
    path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
    return reads and (path in OPEN or path.startswith(OPEN_BELOW))


class Keys:
    """Keys come as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    The time a comparison takes says nothing about the keys: digests of one length are compared, all of them always.
    """

    def __init__(self, app: ASGIApp, keys: list[str], refuse: Refuse) -> None:
        self.app, self.refuse = app, refuse
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            number = self._number(_given(Headers(scope=scope)))
            record = current.get()
            if record is not None:
                record.client = number
            if number is None and not is_open(scope):
                missing = HTTPException(
                    401,
                    "an API key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY",
                    {"WWW-Authenticate": 'Bearer realm="GPT*"'},
                )
                response = await self.refuse(Request(scope), missing)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _number(self, given: bytes) -> int | None:
        digest, number = _digest(given), None
        for i, ours in enumerate(self._digests):
            if hmac.compare_digest(digest, ours):
                number = i
        return number


def _given(headers: Headers) -> bytes:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return (key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")).encode("latin-1")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
