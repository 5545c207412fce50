"""A model as evaluation wants it: its precision and how much it reads at once."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import pick_device
from gptstar.errors import UserError
from gptstar.evaluation.budget import FAST_TOKENS, read_setting
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.offload.load import Limits, load_within
from gptstar.offload.plan import Room
from gptstar.pretrained.empty import pick_dtype
from gptstar.pretrained.load import load
from gptstar.progress import progress

UNLIMITED = Limits()


def load_for_evaluation(
    checkpoint: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    limits: Limits = UNLIMITED,
    batch_tokens: str = "auto",
    max_length: int | None = None,
) -> tuple[GPT, Tokenizer]:
    """What `gptstar.load` takes, in the precision it is to be evaluated in.

    dtype: as `gptstar.load` takes it. auto: as saved, but fp32 on a CPU, where half precision is slower. Raises
    UserError for what cannot be loaded. limits: of memory; then the plan goes to stderr, and there is room for passes
    of batch_tokens, or of one text of max_length tokens (None: the model's context).
    """
    pick_dtype(dtype)  # refused before a device is looked for
    place = pick_device(device)
    if limits:
        size = FAST_TOKENS.get(place.type, FAST_TOKENS["cpu"]) if batch_tokens == "auto" else read_setting(batch_tokens)

        def room(_: Tokenizer, config: ModelConfig) -> Room:
            length = max_length or config.context
            most = max(size, length)
            return Room(2 * most, most, most, longest=length)

        return load_within(checkpoint, place, dtype, limits, room, _say, partial(progress, Console(stderr=True)))
    model, tokenizer = load(checkpoint, place, dtype)
    half = model.dtype in (torch.bfloat16, torch.float16)
    return model.float() if dtype == "auto" and half and place.type == "cpu" else model, tokenizer


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def context_length(model: GPT, wanted: int | None) -> int:
    """Tokens the model may read at once: what is wanted, or its own context. UserError beyond learned positions."""
    longest = model.longest
    if wanted is not None and wanted < 1:
        raise UserError(f"max_length={wanted} must be at least 1")
    if wanted is not None and longest is not None and wanted > longest:
        raise UserError(f"max_length={wanted} is beyond the {longest} tokens the model can read: lower it")
    return wanted or model.config.context
