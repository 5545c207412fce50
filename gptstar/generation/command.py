"""What `sample.py` does."""

from __future__ import annotations

from dataclasses import dataclass

from gptstar.device import pick_device
from gptstar.generation.generate import generate
from gptstar.pretrained.load import load


@dataclass
class SampleConfig:
    """checkpoint: a run or checkpoint folder; the rest as in `gptstar.generate`."""

    checkpoint: str = "???"  # must be given
    prompt: str = ""
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    seed: int | None = 0
    device: str = "auto"


def sample(config: SampleConfig) -> str:
    """The prompt and its continuation."""
    model, tokenizer = load(config.checkpoint, pick_device(config.device))
    return generate(
        model,
        tokenizer,
        config.prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
    )
