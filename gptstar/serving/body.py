"""Middleware: how large a body may be, and how long it may take to arrive."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = 30.0  # from the headers to the end of the body


class Body:
    """Whoever reads a body that is too large (413) or does not come (408) is told so; no more than that is held."""

    def __init__(self, app: ASGIApp, most: int, seconds: float = SECONDS) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_large = HTTPException(413, f"the body is larger than the {self.most} bytes this server takes: shorten it")
        deadline = asyncio.get_running_loop().time() + self.seconds
        n_byte, complete = 0, False

        async def bounded() -> Message:
            nonlocal n_byte, complete
            if complete:
                return await receive()
            if declared.isdecimal() and int(declared[:20]) > self.most:
                raise too_large
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                reason = f"the body did not arrive within {self.seconds:g} s: send it faster"
                raise HTTPException(408, reason, {"Connection": "close"}) from None
            n_byte += len(message.get("body", b""))
            if n_byte > self.most:
                raise too_large
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, bounded, send)
