"""/v1/completions: texts that are continued."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from gptstar.data.tokenizer import Tokenizer
from gptstar.serving.asked import Text
from gptstar.serving.openai.errors import Refused, refusals
from gptstar.serving.openai.flow import Run, Usage, answer_in_pieces, answer_whole, frame_of, refusing_what_is_too_long
from gptstar.serving.openai.models import pick
from gptstar.serving.openai.sampling import MOST_LOGPROBS, Sampling, Whole, one_of
from gptstar.serving.openai.writing import Piece, Said, Spelling

DEFAULT_TOKENS = 16
MOST_PROMPTS = 2048  # as OpenAI has it; the operator's MAX_SEQUENCES may be less

router = APIRouter(prefix="/v1")

Token = Annotated[StrictInt, Field(ge=0, le=2**31)]
Prompts = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    | Annotated[list[Token], Field(min_length=1, fail_fast=True)]
    | Annotated[
        list[Annotated[list[Token], Field(fail_fast=True)]],
        Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True),
    ],
    one_of("must be a text, texts, token numbers or lists of token numbers, at least one and not too many"),
]


class CompletionRequest(Sampling):
    """What is continued and how.

    best_of   so many are written, and the n of the highest mean log-probability told
    echo      the prompt comes first; with logprobs it is scored, and then read as it is even if it ends in a space
    logprobs  so many of the likeliest tokens are told beside each
    """

    prompt: Prompts | None = Field(None, description="none: the beginning of a document")
    max_tokens: Annotated[Whole, Field(ge=0, le=2**31)] | None = Field(None, description="16; 0 only with echo")
    best_of: Annotated[Whole, Field(ge=1, le=2**31)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    suffix: Literal[""] | None = Field(None, description="text cannot be filled in before another: leave it out")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """As lists."""
        prompt: Any = "" if self.prompt is None else self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class Logprobs(BaseModel):
    """Of each token: its text, its log-probability in nats, the likeliest ones in its place, where it begins in text.

    A token that ends or begins within a character is written bytes:\\xe2\\x98.
    """

    model_config = ConfigDict(extra="forbid")
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """index: prompt times n plus sequence; finish_reason: length, or stop for the end of a text too."""

    model_config = ConfigDict(extra="forbid")
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """The answer, and each event of a stream."""

    model_config = ConfigDict(extra="forbid")
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


@router.post(
    "/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {}}}, **refusals(404, 413, 503, 504)},
)
async def completions(request: Request, wanted: CompletionRequest) -> Response:
    """Continues prompts, all of them together."""
    served = pick(request, wanted.model)
    server, tokenizer = served.settings, served.tokenizer
    max_tokens = min(DEFAULT_TOKENS, server.max_new_tokens or DEFAULT_TOKENS)
    if wanted.max_tokens is not None:
        max_tokens = wanted.max_tokens
    n = wanted.n or 1
    best_of = wanted.best_of or n
    _check(wanted, max_tokens, n, best_of)
    wanted.check(server, max_tokens, "max_tokens", best_of * len(wanted.prompts))
    _check_tokens(wanted.prompts, tokenizer)
    # The better ones are told from the others by their log-probabilities.
    logprobs = 0 if wanted.logprobs is None and best_of > n else wanted.logprobs
    settings = wanted.settings(server, tokenizer, max_tokens, best_of, logprobs, wanted.stops)
    echo, tell_tokens = bool(wanted.echo), wanted.logprobs is not None
    prompts: Sequence[str | list[int]] = wanted.prompts
    if echo and tell_tokens:  # tokens are read as they are, while the end of a text may be taken back
        most = server.max_input_token_length
        with refusing_what_is_too_long("prompt"):
            texts = [p if isinstance(p, list) else served.end_of(p, most, max_tokens) for p in prompts]
        prompts = await asyncio.to_thread(lambda: [p if isinstance(p, list) else tokenizer.encode(p) for p in texts])
    run = await Run.start(served, prompts, settings, "prompt", echo, tell_tokens)
    frame = frame_of(served, "cmpl", "text_completion")
    spelling = Spelling(tokenizer) if tell_tokens else None

    def whole(pieces: list[Piece]) -> list[dict[str, Any]]:
        return [_choice(i, piece, spelling) for i, piece in enumerate(_best(run, pieces, best_of, n))]

    if not wanted.stream:
        return await answer_whole(request, run, frame, whole)

    def choices(number: int, piece: Piece) -> list[dict[str, Any]]:
        return [_choice(number, piece, spelling)] if piece else []

    return await answer_in_pieces(request, run, frame, choices, wanted.include_usage)


def _check(wanted: CompletionRequest, max_tokens: int, n: int, best_of: int) -> None:
    if best_of < n:
        raise Refused(400, f"best_of={best_of} must be n={n} or more: the best n of so many are told", "best_of")
    if best_of > n and wanted.stream:
        raise Refused(400, f"best_of={best_of} cannot be streamed: which are best is known at the end", "best_of")
    if max_tokens == 0 and not wanted.echo:
        raise Refused(
            400, "max_tokens=0 without echo leaves nothing to tell: set echo to true, or ask for a token", "max_tokens"
        )


def _check_tokens(prompts: list[str] | list[list[int]], tokenizer: Tokenizer) -> None:
    for prompt in prompts:
        too_large = [] if isinstance(prompt, str) else [token for token in prompt if token >= tokenizer.vocab_size]
        if too_large:
            raise Refused(
                400, f"prompt: {too_large[0]} is not in the vocabulary of {tokenizer.vocab_size} tokens", "prompt"
            )


def _best(run: Run, whole: list[Piece], best_of: int, n: int) -> list[Piece]:
    """The n likeliest of each prompt's sequences, by mean log-probability, the best one first."""
    if best_of == n:
        return whole
    chosen = []
    for start in range(0, len(whole), best_of):
        numbers = range(start, start + best_of)
        ranked = sorted(numbers, key=lambda i: run.writings[i].mean_logprob, reverse=True)
        chosen += [whole[i] for i in ranked[:n]]
    return chosen


def _choice(index: int, piece: Piece, spelling: Spelling | None) -> dict[str, Any]:
    told = None if spelling is None else _logprobs(piece.said, spelling)
    return {"index": index, "text": piece.text, "logprobs": told, "finish_reason": piece.finish_reason}


def _logprobs(said: list[Said], spelling: Spelling) -> dict[str, list]:
    def top(one: Said) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        return {spelling.text(token): value for token, value in [*one.top, (one.token, one.logprob)]}

    return {
        "tokens": [spelling.text(one.token) for one in said],
        "token_logprobs": [one.logprob for one in said],
        "top_logprobs": [top(one) for one in said],
        "text_offset": [one.offset for one in said],
    }
