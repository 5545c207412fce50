"""What `sample.py` does."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from typing import Any

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import pick_device
from gptstar.generation.generate import Generation, generate_detailed
from gptstar.generation.randomness import fresh_seed
from gptstar.generation.settings import SamplingSettings
from gptstar.pretrained.load import load

ALWAYS_SAID = ("checkpoint", "prompt", "max_new_tokens", "temperature", "top_p", "seed")


@dataclass
class SampleConfig(SamplingSettings):
    """checkpoint: a run or checkpoint folder, or anything else `gptstar.load` reads; the rest is a request."""

    checkpoint: str = "???"  # must be given
    prompt: str = ""
    device: str = "auto"
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_p: float | None = 0.95
    seed: int | None = 0


def sample(config: SampleConfig) -> str:
    """The prompt and its continuation; where n asks for several, each under a line with the seed that makes it alone.

    The command that makes the sample again goes to stderr.
    """
    config.check()
    if config.seed is None:
        config.seed = fresh_seed()
    model, tokenizer = load(config.checkpoint, pick_device(config.device))
    print(command_line(config), file=sys.stderr)
    done = generate_detailed(model, tokenizer, config.prompt, config)
    texts = [one.prompt + one.text + _table(one, tokenizer) for one in done]
    if len(done) == 1:
        return texts[0]
    return "\n\n".join(f"--- seed={one.seed}\n{text}" for one, text in zip(done, texts, strict=True))


def command_line(config: SampleConfig) -> str:
    """What to type for the same sample: the settings that always matter, and those that are not as usual."""
    usual, settings = asdict(SampleConfig()), asdict(config)
    keys = [*ALWAYS_SAID, *(k for k, v in settings.items() if k not in ALWAYS_SAID and v != usual[k])]
    return " ".join(["python sample.py", *(shlex.quote(f"{k}={_typed(k, settings[k])}") for k in keys)])


def _typed(key: str, value: Any) -> str:
    """A value as the command line takes it: Hydra's grammar, but prompt and checkpoint as they are."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_typed('', v) for v in value)}]"
    if not isinstance(value, str) or key == "device":
        return str(value)
    looks_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key and not looks_quoted and value != "null":
        return value
    value = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value).replace("${", "\\${")
    return f"'{value}'"


def _table(one: Generation, tokenizer: Tokenizer) -> str:
    """Log-probabilities, a line a token, where they were asked for."""
    lines = [""]
    for token in one.logprobs or []:
        likeliest = "  ".join(f"{tokenizer.decode([i])!r} {value:.3f}" for i, value in token.top)
        lines.append(f"{tokenizer.decode([token.token])!r} {token.logprob:.3f}    {likeliest}".rstrip())
    return "\n".join(lines)
