"""Middleware: so many requests a minute from each client."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gptstar.serving.faults import Refuse
from gptstar.serving.keys import is_open
from gptstar.serving.records import current

MOST_CLIENTS = 10_000  # remembered; beyond that the one that has been silent longest is forgotten


FREE = ("/metrics", "/api/models")  # the latter is what the page asks while a model is read


class Buckets:
    """A token bucket a client: `per_minute` at once, and as many a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.per_second, self.clock = per_minute, per_minute / 60, clock
        self._left: OrderedDict[object, tuple[float, float]] = OrderedDict()  # requests, and when that was

    def take(self, client: object) -> float:
        """0, or how many seconds `client` has to wait."""
        now = self.clock()
        left, then = self._left.pop(client, (float(self.most), now))
        left = min(float(self.most), left + (now - then) * self.per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self.per_second
        self._left[client] = (left if wait else left - 1), now
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


class Rate:
    """Counts by API key, and without one by address. What needs no key, metrics and cards are not counted."""

    def __init__(self, app: ASGIApp, per_minute: int, refuse: Refuse) -> None:
        self.app, self.refuse = app, refuse
        self.buckets = Buckets(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope) and scope["path"] not in FREE:
            wait = math.ceil(self.buckets.take(_client(scope)))
            if wait:
                reason = f"more than {self.buckets.most} requests a minute: try again in {wait} s"
                response = await self.refuse(Request(scope), HTTPException(429, reason, {"Retry-After": str(wait)}))
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _client(scope: Scope) -> object:
    record = current.get()
    if record is not None and record.client is not None:
        return record.client
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    # Whoever has one IPv6 address has the 2^64 beside it.
    return host if address.version == 4 else ipaddress.ip_network((address, 64), strict=False)
