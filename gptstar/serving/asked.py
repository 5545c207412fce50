"""What requests of all contracts share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, model_validator
from pydantic_core import PydanticCustomError

from gptstar.errors import UserError
from gptstar.serving.settings import ServerSettings


def _sound(text: str) -> str:
    """JSON can hold halves of characters, which no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half of a character (a lone surrogate) at {error.start}") from None
    return text


Text = Annotated[str, Strict(), AfterValidator(_sound)]


class Body(BaseModel):
    """Names it does not know are refused at the first one: an error for each of 100,000 would take seconds."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    about = {"name": str(name)[:60], "known": ", ".join(cls.model_fields)}
                    raise PydanticCustomError("unknown_field", "{name} is not among the fields {known}", about)
        return value


def limited(settings: ServerSettings, max_new_tokens: int, n: int, name: str) -> None:
    """Raises UserError for more than the operator allows. name: what the contract calls the number of sequences."""
    most = settings.max_new_tokens
    if most is not None and max_new_tokens > most:
        raise UserError(f"{max_new_tokens} new tokens are more than the {most} this server writes: ask for fewer")
    if n > settings.max_sequences:
        raise UserError(f"{name}={n} is more than the {settings.max_sequences} sequences this server writes a request")
