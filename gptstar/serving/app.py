"""The application: routes over the models, and what is true of all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import gptstar
from gptstar.errors import UserError
from gptstar.serving import cards, health, metrics, openai, page_routes, rest, stream, talk
from gptstar.serving.answers import Gone, refusal, status_of
from gptstar.serving.body import Body
from gptstar.serving.faults import Faults
from gptstar.serving.keys import Keys
from gptstar.serving.logs import tell
from gptstar.serving.metrics import Metrics
from gptstar.serving.models import Models, NotReady
from gptstar.serving.openai.errors import PREFIX, Refused, refuse
from gptstar.serving.rate import Rate
from gptstar.serving.records import Record
from gptstar.serving.settings import ServerSettings
from gptstar.serving.watch import Watch
from gptstar.serving.worker import Busy, Closed


def create_app(settings: ServerSettings, models: Models | None = None) -> FastAPI:
    """An ASGI application; models begin to load when it starts. Raises UserError for a name that means nothing."""
    models = models or Models(settings)
    of_app = Metrics(models)

    def ended(record: Record) -> None:
        of_app.answered(record)
        tell(record, settings.log_prompts)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(models.load())
        yield
        loading.cancel()
        models.close()

    app = FastAPI(
        title="GPT*",
        version=gptstar.__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # the address that a redirect names would be the client's own invention
        middleware=[Middleware(Watch, ended), *_around(settings)],
    )
    app.state.settings, app.state.models, app.state.metrics = settings, models, of_app
    for kind in (
        *(UserError, RequestValidationError, Refused, Busy, NotReady, Closed),
        *(TimeoutError, StarletteHTTPException),
    ):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(Gone, _nobody)
    for router in (health.router, metrics.router, rest.router, talk.router, openai.router):
        app.include_router(router)
    if settings.page:
        app.state.cards = {}
        for router in (page_routes.router, cards.router, stream.router):
            app.include_router(router)
    return app


def _around(settings: ServerSettings) -> list[Middleware]:
    """What every request passes, the first of them first."""
    around = []
    if settings.cors_origins:
        around.append(
            Middleware(
                CORSMiddleware,
                settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Request-ID"],
            )
        )
    around.append(Middleware(Faults, _refuse))
    if settings.api_keys:
        around.append(Middleware(Keys, [key.get_secret_value() for key in settings.api_keys], _refuse))
    if settings.rate_limit:
        around.append(Middleware(Rate, settings.rate_limit, _refuse))
    around.append(Middleware(Body, settings.max_body_bytes))
    return around


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StarletteHTTPException):
        cause = error.__cause__
        if error.status_code == 400 and cause is not None:  # what FastAPI makes of all but a JSONDecodeError
            error = UserError(f"the body is not JSON: {cause}")
        elif not isinstance(error, HTTPException):
            error = HTTPException(error.status_code, error.detail, dict(error.headers or {}))
    return refuse(error) if request.scope["path"].startswith(PREFIX) else refusal(*status_of(error))


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx writes it into its log
