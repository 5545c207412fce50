"""uvicorn with our way to end: what is asked is answered first."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptstar.errors import UserError
from gptstar.garbage import LongLived
from gptstar.serving.app import create_app
from gptstar.serving.models import Models
from gptstar.serving.settings import ServerSettings

log = logging.getLogger(__name__)

HEADER_SECONDS = 30.0  # until a connection has sent the headers of its first request, or of the next one
SENDING_SECONDS = 5


class Protocol(H11Protocol):
    """Closes connections that do not come to the point; uvicorn waits for headers as long as somebody likes."""

    patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self.patience = self.loop.call_later(HEADER_SECONDS, self._give_up, self.cycle)

    def _stop_waiting(self) -> None:
        if self.patience is not None:
            self.patience.cancel()

    def _give_up(self, cycle: object) -> None:
        if self.cycle is cycle:  # no further request has come
            self.transport.close()


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT models take nothing new; requests end in their own time or are told that there is none.

    Until then it listens: who comes now hears 503, and so does a balancer that asks for /health. A second Ctrl-C ends
    it at once.
    """

    def __init__(self, config: uvicorn.Config, models: Models, seconds: float) -> None:
        super().__init__(config)
        self.models, self.seconds = models, seconds
        self._long_lived = LongLived()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Python calls it between two instructions of the loop's thread, so it does no more than this; main_loop looks
        # ten times a second. uvicorn's own would also have the signal end the process once all is done.
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. Where no model will ever answer, the server ends, for whoever is to start it again.

        Once all models are there, what the process holds is set aside: a body of a megabyte can make so many objects
        that Python searches them all for garbage, and streams wait a tenth of a second for that.
        """
        if self.models.settled:
            self._long_lived.set_aside()
        return self.models.hopeless is not None or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._long_lived.release()
        log.info("ending: requests have %g s to come to their end", self.seconds)
        end = time.monotonic() + self.seconds
        draining = asyncio.create_task(self.models.drain(self.seconds))
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        draining.cancel()
        self.models.close()
        # There is only to send what was written, to whoever reads slowly too.
        self.config.timeout_graceful_shutdown = round(max(0.0, end - time.monotonic())) + SENDING_SECONDS
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out then, and the application dies with a traceback
            await self.lifespan.shutdown()


def serve(settings: ServerSettings) -> None:
    """Serves until it is told to end. Raises UserError for what cannot be, before anything is read, and where no model
    can answer."""
    models = Models(settings)
    app: FastAPI = create_app(settings, models)
    listening = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks decides what X-Forwarded-For says
        timeout_keep_alive=30,
    )
    host, port = listening.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    Server(config, models, settings.shutdown_seconds).run(sockets=[listening])
    log.info("ended")
    if models.hopeless is not None:
        raise UserError(models.hopeless)
    if any(served.state == "loading" for served in models.served.values()):
        os._exit(0)  # nobody waits for the thread that reads weights


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        raise UserError(f"HOST={host} PORT={port} cannot be listened on: {error.strerror or error}") from error
    return listening
