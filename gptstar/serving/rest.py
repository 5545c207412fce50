"""The REST contract: POST / and POST /generate, as the GPT-2 / GPT-Neo / GPT-J server for consumer hardware had it."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from gptstar.errors import UserError
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.answers import refusals, unless_gone
from gptstar.serving.asked import Body, Text, limited
from gptstar.serving.models import Served

router = APIRouter(tags=["REST"])


class Given(Body):
    """The prompt, plain or in base64; plain counts where both are there."""

    plain: Text | None = None
    in_64: str | None = Field(None, description="base64 of UTF-8", json_schema_extra={"format": "byte"})

    @model_validator(mode="after")
    def _one(self) -> Given:
        if self.plain is None and self.in_64 is None:
            raise ValueError("either plain or in_64 must be there")
        if self.plain is None:
            self.decoded()
        return self

    def decoded(self) -> str:
        """The prompt. Raises ValueError for what is not base64 of UTF-8."""
        if self.plain is not None:
            return self.plain
        try:
            return base64.b64decode(self.in_64 or "", validate=True).decode("utf-8")
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"in_64 must be base64 of UTF-8 text: {error}") from None


class Wanted(Body):
    """How the text goes on.

    top_p   up to 1 a fraction, above that a percentage; 100 is off
    """

    text: Given
    do_sample: StrictBool = False
    top_p: float = Field(100, gt=0, le=100, strict=True, description="a percentage, or up to 1 a fraction; 100: off")
    top_k: StrictInt = Field(50, ge=0, le=2**31, description="0: off")
    temperature: float = Field(1.0, gt=0, le=100, strict=True)
    max_length: StrictInt = Field(20, ge=1, le=2**31, description="tokens, the prompt's included")
    num_return_sequences: StrictInt = Field(1, ge=1, le=2**31)

    @model_validator(mode="after")
    def _several_need_chance(self) -> Wanted:
        if self.num_return_sequences > 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} without do_sample would give the same text "
                "several times: set do_sample to true"
            )
        return self


class Sentence(BaseModel):
    """generated_text: the prompt and what follows it."""

    model_config = ConfigDict(extra="forbid")
    generated_text: str


class Answer(BaseModel):
    """s_elapsed: seconds, as text with two digits."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    s_elapsed: str
    sentences: list[Sentence]


@router.post("/generate", response_model=Answer, responses=refusals(401, 408, 413, 422, 429, 500, 503, 504))
@router.post("/", response_model=Answer, responses=refusals(401, 408, 413, 422, 429, 500, 503, 504))
async def generate(request: Request, wanted: Wanted) -> dict[str, Any]:
    """Texts that begin with the prompt."""
    start = time.monotonic()
    served: Served = request.app.state.models.default
    settings = served.settings
    prompt = wanted.text.decoded()
    n_prompt = await served.count(prompt)
    room = wanted.max_length - n_prompt
    if room < 1:
        raise UserError(
            f"max_length={wanted.max_length} counts the prompt, which has {n_prompt} tokens: "
            f"set it to {n_prompt + 1} or more"
        )
    how: dict[str, Any] = {"temperature": 0.0}
    if wanted.do_sample:
        top_p = wanted.top_p if wanted.top_p <= 1 else wanted.top_p / 100
        how = {"temperature": wanted.temperature, "top_k": wanted.top_k or None, "top_p": top_p if top_p < 1 else None}
    limited(settings, room, wanted.num_return_sequences, "num_return_sequences")
    job = await served.ask(
        prompt,
        SamplingSettings(
            max_new_tokens=room,
            n=wanted.num_return_sequences,
            max_prompt_tokens=settings.max_input_token_length,
            **how,
        ),
    )
    done = await unless_gone(request, job.all(), settings.request_timeout)
    return {
        "model": served.source.source if served.source.link else served.name,  # where folders lie is nobody's business
        "s_elapsed": f"{time.monotonic() - start:.2f}",
        "sentences": [{"generated_text": job.prompt.text + one.text} for one in done],
    }
