"""Middleware: a mistake of ours is a 500 without details for the client, and a traceback in the log."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptstar.serving.records import current

Refuse = Callable[[Request, Exception], Awaitable[Response]]  # an error as the contract of the path says it

log = logging.getLogger(__name__)


class Faults:
    """Inside CORS, so that pages of other sites can read these answers too. An answer that has begun is cut off."""

    def __init__(self, app: ASGIApp, refuse: Refuse) -> None:
        self.app, self.refuse = app, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            record = current.get()
            fields = {"request": record.id} if record else {}
            log.error("a request has failed", exc_info=error, extra={"fields": fields})
            if not started:
                response = await self.refuse(Request(scope), error)
                await response(scope, receive, send)
