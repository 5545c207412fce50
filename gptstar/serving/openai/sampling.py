"""What both kinds of completion may be asked: OpenAI's fields and four of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    WrapValidator,
)

from gptstar.data.tokenizer import Tokenizer
from gptstar.generation.settings import SamplingSettings
from gptstar.serving.asked import Body, Text
from gptstar.serving.openai.errors import Refused
from gptstar.serving.settings import ServerSettings

MOST_STOPS = 16  # OpenAI takes 4, but lm-evaluation-harness sends more
MOST_LOGPROBS = 20
MOST_BIASES = 1024

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def one_of(what: str) -> WrapValidator:
    """One line instead of one for each member of a union."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            own = [e["msg"] for e in error.errors() if e["type"] == "value_error"]  # a fault within, not of the kind
            raise ValueError(own[0].removeprefix("Value error, ") if own else what) from None

    return WrapValidator(check)


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 16.0 is 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[StrictInt, BeforeValidator(_whole)]
StopText = Annotated[Text, Field(min_length=1)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True)],
    one_of(f"must be a text or up to {MOST_STOPS} texts, none of them empty"),
]


def _few(value: Any) -> Any:
    """Before each of them is looked at."""
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"{len(value)} tokens are more than the {MOST_BIASES} that can be named")
    return value


Biases = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Literal[-100, 0]],
    Field(max_length=MOST_BIASES),
    BeforeValidator(_few),
]


class StreamOptions(Body):
    """include_usage: one more chunk at the end says how many tokens there were."""

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = Field(None, description="ignored: there is none")


class Sampling(Body):
    """How text goes on. null, or nothing, is the default. `top_k`, `min_p`, `typical_p` and `repetition_penalty` are
    not OpenAI's: a client sends them as `extra_body`."""

    model_config = ConfigDict(protected_namespaces=())
    model: Text | None = Field(None, description="a name of /v1/models; the first one if there is none")
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = Field(None, description="1; 0 is greedy")
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0, le=2**31)] | None = Field(None, description="0: off")
    min_p: Annotated[Number, Field(ge=0, lt=1)] | None = None
    typical_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: Biases | None = Field(
        None, description="token numbers that are never (-100) chosen; no other bias can be had"
    )
    n: Annotated[Whole, Field(ge=1, le=2**31)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="ignored")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        """Stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def settings(
        self,
        server: ServerSettings,
        tokenizer: Tokenizer,
        max_tokens: int,
        n: int,
        logprobs: int | None,
        stop: list[str],
    ) -> SamplingSettings:
        """For the engine. Refuses what does not fit this model."""
        forbidden = [int(token) for token, bias in (self.logit_bias or {}).items() if bias]
        for token in forbidden:
            if token >= tokenizer.vocab_size:
                raise Refused(
                    400, f"logit_bias: {token} is not in the vocabulary of {tokenizer.vocab_size} tokens", "logit_bias"
                )
        return SamplingSettings(
            max_new_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_k=1 if self.top_p == 0 else self.top_k or None,
            top_p=self.top_p or None,
            min_p=self.min_p,
            tau=self.typical_p,
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            forbidden_tokens=forbidden,
            stop=stop,
            max_prompt_tokens=server.max_input_token_length,
            n=n,
            seed=self.seed,
            logprobs=logprobs,
        )

    def check(self, server: ServerSettings, max_tokens: int, name: str, n_sequence: int) -> None:
        """Refuses more than the operator allows, and options of a stream without one."""
        most = server.max_new_tokens
        if most is not None and max_tokens > most:
            raise Refused(400, f"{name}={max_tokens}: this server writes {most} tokens at most", name)
        if n_sequence > server.max_sequences:
            raise Refused(
                400,
                f"{n_sequence} sequences are more than the {server.max_sequences} that this server writes a request: "
                "lower n or best_of, or send fewer prompts",
                "n",
            )
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options are for streams: set stream to true", "stream_options")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
