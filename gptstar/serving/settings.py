"""What a server is told by its environment and a `.env` file beside it."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gptstar.errors import UserError
from gptstar.sizes import parse_bytes

# SRVREST_MODEL's numbers
BY_NUMBER = ("gpt2", "gpt-neo-125M", "gpt-neo-1.3B", "gpt-neo-2.7B", "gpt-j-6B")
TALK_INPUT, TALK_NEW = 13, 11  # the demo's own limits, where none is set
NO_KEY = "holds no key, and without keys everybody may ask: leave it out where that is meant"

Texts = Annotated[list[str], NoDecode]  # separated by commas, not JSON


class ServerSettings(BaseSettings):
    """Each field is an environment variable of the same name in capitals.

    model_name              a run folder, a preset's name with `checkpoint`, a folder in transformers' layout, one of
                            `gptstar.serving.names.NAMES`, or a hub name OWNER/NAME
    more_models             further ones, separated by commas; a request names the one it means
    checkpoint              the weights of `model_name` where that is a preset; without a model_name, what is served
    max_input_token_length  longer prompts lose their beginning. Not set: 13 for /talk; elsewhere what does not fit is
                            refused
    max_new_tokens          the most that a request may ask for, and what /talk writes. Not set: 11 for /talk;
                            elsewhere what the model can read
    device, dtype, compile  as `sample.py` takes them
    memory_budget           bytes (20G, 16Gi) that weights and cache may take together. A model that does not fit runs
                            with layers on disk, seconds a token (docs/offload.md); then it is for the whole process,
                            and what is too small for that is refused before it is read. With a GPU: for the whole
                            process outside it. Not set: no such check
    gpu_memory_budget       the same of the GPU's memory, for weights and cache. Not set: what is free
    quantized_dir           where quantised copies of such a model are kept. Not set: ~/.cache/gptstar/quantized
    host, port              where it listens
    max_rows                sequences that are decoded together
    max_queue               sequences that wait; beyond that a request is told to come again (429)
    max_sequences           of one request
    max_body_bytes          of a request
    request_timeout         seconds until a request that is not answered is given up
    shutdown_seconds        how long requests may still take once the server is told to end
    api_keys                whoever knows one of these may ask; none: everybody may
    rate_limit              requests a minute and key (without keys: and address); 0: any number
    cors_origins            other sites whose pages may ask; none by default, * for all
    log_prompts             whether the log holds what was asked and answered
    log_format              text or json
    page                    whether / shows the web page
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", env_ignore_empty=True, protected_namespaces=()
    )

    model_name: str = "gpt-neo-125M"
    more_models: Texts = Field(default_factory=list)
    checkpoint: Path | None = None
    max_input_token_length: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    device: str = "auto"
    dtype: Literal["fp32", "bf16", "fp16", "int8", "int4"] | None = None
    compile: bool = False
    memory_budget: int | None = Field(None, ge=1)
    gpu_memory_budget: int | None = Field(None, ge=1)
    quantized_dir: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    max_rows: int = Field(16, ge=1)
    max_queue: int = Field(64, ge=0)
    max_sequences: int = Field(8, ge=1)
    max_body_bytes: int = Field(2**20, ge=1)
    request_timeout: float = Field(300.0, gt=0)
    shutdown_seconds: float = Field(30.0, ge=0)
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(default_factory=list)
    rate_limit: int = Field(0, ge=0)
    cors_origins: Texts = Field(default_factory=list)
    log_prompts: bool = False
    log_format: Literal["text", "json"] = "text"
    page: bool = True
    srvrest_model: int | None = Field(None, ge=0, lt=len(BY_NUMBER))
    srvrest_cuda_dev: int | None = Field(None, ge=-1)

    @field_validator("more_models", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip(" ,"):
            raise ValueError(NO_KEY)
        if isinstance(value, str) and re.search(r"[\s`$]", value.replace(", ", ",").strip()):
            raise ValueError("a key holds white space, $ or `: a shell's command is not run here, write what it gives")
        return value

    @field_validator("dtype", mode="before")
    @classmethod
    def _as_saved(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("memory_budget", "gpu_memory_budget", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        try:
            return parse_bytes(value) if isinstance(value, str) else value
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _older_names(self) -> ServerSettings:
        """The REST server's variables stand for ours where those are not set, and a checkpoint for its own name."""
        if self.srvrest_model is not None and "model_name" not in self.model_fields_set:
            self.model_name = BY_NUMBER[self.srvrest_model]
        elif self.checkpoint is not None and "model_name" not in self.model_fields_set:
            self.model_name = str(self.checkpoint)
        if self.srvrest_cuda_dev is not None and "device" not in self.model_fields_set:
            self.device = "cpu" if self.srvrest_cuda_dev < 0 else f"cuda:{self.srvrest_cuda_dev}"
        return self

    @property
    def sources(self) -> list[str]:
        """Names of all models that are served, the first one the default."""
        return list(dict.fromkeys([self.model_name, *self.more_models]))


def read_settings(env_file: str | Path | None = ".env", **given: Any) -> ServerSettings:
    """Settings from the environment, then `env_file`. Raises UserError that names the variable, value and remedy."""
    try:
        settings = ServerSettings(_env_file=env_file, **given)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        value = "" if "api_key" in name.lower() else f"={str(first['input'])[:80]}"
        raise UserError(f"{name}{value}: {first['msg'].removeprefix('Value error, ')}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{env_file} is not UTF-8 (byte {error.start}): convert it") from None
    for line in _misspelt(env_file):
        raise UserError(line)
    # An empty variable counts as none, but a key that somebody meant to set must not open the server.
    meant = {name.lower() for name in os.environ} | set(_names(env_file))
    if not settings.api_keys and "api_keys" not in given and "api_keys" in meant:
        raise UserError(f"API_KEYS: {NO_KEY}")
    return settings


def _misspelt(env_file: str | Path | None) -> list[str]:
    """Names in `.env` that nothing reads but that look like one that would be; other programs' names are theirs."""
    known = list(ServerSettings.model_fields)
    wrong = [(n, difflib.get_close_matches(n, known, 1, 0.8)) for n in _names(env_file) if n not in known]
    return [f"{env_file}: {n.upper()} is not a setting: did you mean {c[0].upper()}?" for n, c in wrong if c]


def _names(env_file: str | Path | None) -> list[str]:
    """What the lines of `.env` set, in small letters."""
    if env_file is None or not Path(env_file).is_file():
        return []
    lines = Path(env_file).read_text(encoding="utf-8").splitlines()
    return [found[1].lower() for line in lines if (found := re.match(r"\s*(?:export\s+)?(\w+)\s*=", line))]
