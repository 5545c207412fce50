"""/v1/chat/completions: a conversation with a model that only continues text.

Base models know no turns, so a conversation is written down as one:

    What system and developer messages say, as it is.

    User: what is asked
    Assistant: what was answered
    User: what is asked next
    Assistant:

The model goes on until it would write the next "User:" itself. White space at the beginning of its answer is dropped.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from gptstar.serving.asked import Body, Text
from gptstar.serving.openai.errors import Refused, refusals
from gptstar.serving.openai.flow import Run, Usage, answer_in_pieces, answer_whole, frame_of, refusing_what_is_too_long
from gptstar.serving.openai.models import pick
from gptstar.serving.openai.sampling import MOST_LOGPROBS, Sampling, Whole, one_of
from gptstar.serving.openai.writing import Piece, Said, Spelling

DEFAULT_TOKENS = 256
NAMES = {"user": "User", "assistant": "Assistant"}
STOP = "\nUser:"

router = APIRouter(prefix="/v1")


def _none_of_these(value: Any) -> Any:
    if value:
        raise ValueError("this server's models continue text and call nothing: leave it out")
    return value


Nothing = Annotated[Annotated[list[Any], Field(max_length=0)] | None, BeforeValidator(_none_of_these)]


def _truth(value: object) -> object:
    """0 and 0.0 equal False, but are not what JSON calls false."""
    if not isinstance(value, bool):
        raise ValueError("must be false")
    return value


class TextPart(Body):
    """Of a message. Images, sound and files are not read."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """What somebody has said. Names, calls, sound and refusals cannot be written down for a base model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Text | Annotated[list[TextPart], Field(fail_fast=True)],
        one_of("must be a text or a list of parts of type text"),
    ]
    name: None = None
    tool_calls: Nothing = None
    function_call: None = None
    audio: None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """All parts as one."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Body):
    """Text alone: what a base model writes follows no schema."""

    type: Literal["text"]


class ChatRequest(Sampling):
    """A conversation, and how it goes on. Fields that cannot be honoured may hold what is the same as nothing."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=2**31)] | None = Field(
        None, description="256, or what the model can still read if that is less"
    )
    max_tokens: Annotated[Whole, Field(ge=1, le=2**31)] | None = Field(
        None, description="the older name of max_completion_tokens"
    )
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    metadata: dict[Text, Text] | None = Field(None, description="ignored, as the next four are")
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    parallel_tool_calls: StrictBool | None = None

    audio: None = None
    function_call: Literal["none", "auto"] | None = None
    functions: Nothing = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Annotated[Literal[False], BeforeValidator(_truth)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Nothing = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


class TopLogprob(BaseModel):
    """bytes: all of a token's, where it may hold a part of a character."""

    model_config = ConfigDict(extra="forbid")
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that was chosen, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of the answer's tokens."""

    model_config = ConfigDict(extra="forbid")
    content: list[TokenLogprob] | None
    refusal: None = None


class Answered(BaseModel):
    """The assistant's message."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """finish_reason: length, or stop for the next turn and for the end of a text."""

    model_config = ConfigDict(extra="forbid")
    index: int
    message: Answered
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer. A stream has chat.completion.chunk objects instead."""

    model_config = ConfigDict(extra="forbid")
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}, **refusals(404, 413, 503, 504)},
)
async def chat(request: Request, wanted: ChatRequest) -> Response:
    """Goes on with a conversation."""
    served = pick(request, wanted.model)
    server, tokenizer = served.settings, served.tokenizer
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise Refused(400, "top_logprobs without logprobs: set logprobs to true", "top_logprobs")
    max_tokens, name = _max_tokens(wanted)
    with refusing_what_is_too_long("messages"):
        text = served.end_of(written_down(wanted.messages), server.max_input_token_length, max_tokens or 0)
    tokens = await asyncio.to_thread(tokenizer.encode, text)
    read = min(len(tokens), server.max_input_token_length or len(tokens))
    if max_tokens is None:
        room = served.worker.engine.capacity - read
        max_tokens = max(1, min(DEFAULT_TOKENS, server.max_new_tokens or DEFAULT_TOKENS, room))
    n = wanted.n or 1
    wanted.check(server, max_tokens, name, n)
    logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
    settings = wanted.settings(server, tokenizer, max_tokens, n, logprobs, [STOP, *wanted.stops])
    run = await Run.start(served, [tokens], settings, "messages", tell_tokens=logprobs is not None)
    spelling = Spelling(tokenizer) if logprobs is not None else None
    frame = frame_of(served, "chatcmpl", "chat.completion.chunk" if wanted.stream else "chat.completion")

    def whole(pieces: list[Piece]) -> list[dict[str, Any]]:
        return [
            {
                "index": i,
                "message": {"role": "assistant", "content": piece.text.lstrip(), "refusal": None},
                "logprobs": _logprobs(piece.said, spelling),
                "finish_reason": piece.finish_reason,
            }
            for i, piece in enumerate(pieces)
        ]

    if not wanted.stream:
        return await answer_whole(request, run, frame, whole)
    begun: set[int] = set()  # who has said more than white space
    met: set[int] = set()

    def choice(number: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def choices(number: int, piece: Piece) -> list[dict[str, Any]]:
        made = [] if number in met else [choice(number, {"role": "assistant", "content": "", "refusal": None})]
        met.add(number)
        text = piece.text if number in begun else piece.text.lstrip()
        if text:
            begun.add(number)
        if text or piece.said:
            made.append(choice(number, {"content": text}, _logprobs(piece.said, spelling)))
        if piece.finish_reason:
            made.append(choice(number, {}, reason=piece.finish_reason))
        return made

    return await answer_in_pieces(request, run, frame, choices, wanted.include_usage)


def written_down(messages: list[Message]) -> str:
    """The prompt for a conversation."""
    text = ""
    for message in messages:
        text += f"{NAMES[message.role]}: {message.text}\n" if message.role in NAMES else f"{message.text}\n\n"
    return f"{text}{NAMES['assistant']}:"


def _max_tokens(wanted: ChatRequest) -> tuple[int | None, str]:
    """Under whichever name it is given."""
    new, old = wanted.max_completion_tokens, wanted.max_tokens
    if new is not None and old is not None and new != old:
        raise Refused(
            400, f"max_tokens={old} and max_completion_tokens={new} are two names of one thing: set one", "max_tokens"
        )
    return (old, "max_tokens") if new is None and old is not None else (new, "max_completion_tokens")


def _logprobs(said: list[Said], spelling: Spelling | None) -> dict[str, Any] | None:
    if spelling is None:
        return None

    def shown(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": logprob, "bytes": list(spelling.bytes(token))}

    content = [{**shown(one.token, one.logprob), "top_logprobs": [shown(*other) for other in one.top]} for one in said]
    return {"content": content, "refusal": None}
