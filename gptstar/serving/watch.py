"""Middleware around all others: every request has a record, and is told of once it has been answered."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptstar.serving.records import Record, current

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Watch:
    """Calls `ended` with the record of each request, whatever became of it."""

    def __init__(self, app: ASGIApp, ended: Callable[[Record], object]) -> None:
        self.app, self.ended = app, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "other"
        record = Record(method, Headers(scope=scope).get("x-request-id", ""))
        token = current.set(record)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.id
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            current.reset(token)
            record.route = getattr(scope.get("route"), "path", "other")
            record.seconds = time.monotonic() - record.started
            self.ended(record)
