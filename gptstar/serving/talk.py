"""The demo's contract: GET /talk?input=TEXT, as the GPT-Neo demo server had it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict

from gptstar.generation.settings import SamplingSettings
from gptstar.serving.answers import refusals, unless_gone
from gptstar.serving.asked import Text
from gptstar.serving.models import Served
from gptstar.serving.settings import TALK_INPUT, TALK_NEW

TEMPERATURE = 0.9

router = APIRouter(tags=["demo"])


class Said(BaseModel):
    """output: what follows the text."""

    model_config = ConfigDict(extra="forbid")
    output: str


@router.get("/talk", response_model=Said, responses=refusals(401, 422, 429, 500, 503, 504))
async def talk(request: Request, text: Annotated[Text, Query(alias="input")]) -> dict[str, str]:
    """Goes on with a text; one that is too long loses its beginning."""
    served: Served = request.app.state.models.default
    settings = served.settings
    capacity, n_prompt = served.worker.engine.capacity, settings.max_input_token_length or TALK_INPUT
    room = max(1, capacity - min(n_prompt, capacity // 2))  # what is asked for nowhere must not be too much
    how = SamplingSettings(
        max_new_tokens=min(settings.max_new_tokens or TALK_NEW, room),
        max_prompt_tokens=n_prompt,
        temperature=TEMPERATURE,
        truncate=True,
    )
    job = await served.ask(text, how)
    (done,) = await unless_gone(request, job.all(), settings.request_timeout)
    return {"output": done.text}
