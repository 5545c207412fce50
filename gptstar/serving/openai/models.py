"""/v1/models: what there is to ask."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from gptstar.serving.models import Served
from gptstar.serving.openai.errors import Refused, refusals

router = APIRouter(prefix="/v1")


class Model(BaseModel):
    """created: when this server started, in seconds since 1970."""

    model_config = ConfigDict(extra="forbid")
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models, the default one first."""

    model_config = ConfigDict(extra="forbid")
    object: Literal["list"]
    data: list[Model]


@router.get("/models", response_model=ModelList, responses=refusals())
async def list_models(request: Request) -> dict[str, Any]:
    """Those still being loaded too; `/health` says which are ready."""
    return {"object": "list", "data": [_shown(served) for served in request.app.state.models.served.values()]}


@router.get("/models/{model:path}", response_model=Model, responses=refusals(404))
async def one_model(request: Request, model: str) -> dict[str, Any]:
    """A model by its name, which may hold slashes."""
    return _shown(pick(request, model))


def pick(request: Request, name: str | None) -> Served:
    """The model that is meant; None: the default one. Refuses a name that is not served."""
    models = request.app.state.models
    try:
        served: Served = models.pick(name)
    except KeyError:
        known = ", ".join(models.served)
        raise Refused(404, f"the model {name!r} is not served here: {known}", "model", "model_not_found") from None
    return served


def _shown(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "gptstar"}
