"""OpenAI's contract: /v1/models, /v1/completions and /v1/chat/completions, as its Python client speaks it."""

from fastapi import APIRouter

from gptstar.serving.openai import chat, completions, models

# Each part has the prefix itself: log and metrics name a route as it is where it is made.
router = APIRouter(tags=["OpenAI"])
for part in (models, completions, chat):
    router.include_router(part.router)
