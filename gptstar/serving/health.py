"""Whether the server can answer, for whoever starts, watches or balances it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

router = APIRouter(tags=["operations"])


class ModelHealth(BaseModel):
    """state: waiting, loading, ready, failed or ending; progress: share of the weights that is read, 0 to 1."""

    model_config = ConfigDict(extra="forbid")
    name: str
    state: str
    progress: float
    error: str | None


class Health(BaseModel):
    """status: ready when every model is, failed when one is, ending once the server is told to, else loading."""

    model_config = ConfigDict(extra="forbid")
    status: str
    models: list[ModelHealth]


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "not ready"}})
async def health(request: Request) -> JSONResponse:
    """200 when all models are ready, 503 before that and when one has failed."""
    states = []
    for served in request.app.state.models.served.values():
        error = served.failure
        state = "failed" if error is not None else served.state
        if state == "ready" and served.worker.closing:
            state = "ending"
        states.append(ModelHealth(name=served.name, state=state, progress=round(served.progress, 3), error=error))
    found = {s.state for s in states}
    status = next((state for state in ("failed", "ending") if state in found), "loading")
    status = "ready" if found == {"ready"} else status
    return JSONResponse(Health(status=status, models=states).model_dump(), 200 if status == "ready" else 503)
