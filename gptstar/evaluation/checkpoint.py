"""A model as evaluation wants it: its precision and how much it reads at once."""

from __future__ import annotations

from pathlib import Path

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import pick_device
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.pretrained.load import load

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # the harness's names


def load_for_evaluation(checkpoint: str | Path, device: str = "auto", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """What `gptstar.load` takes, in the precision it is to be evaluated in.

    dtype: of the weights and of all that is computed from them. auto: as saved, but fp32 on a CPU, where half precision
    is slower. Raises UserError for what cannot be loaded.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown: choose one of auto, fp32, bf16, fp16")
    place = pick_device(device)
    model, tokenizer = load(checkpoint, place, DTYPES.get(dtype))
    half = model.dtype in (torch.bfloat16, torch.float16)
    return model.float() if dtype == "auto" and half and place.type == "cpu" else model, tokenizer


def context_length(model: GPT, wanted: int | None) -> int:
    """Tokens the model may read at once: what is wanted, or its own context. UserError beyond learned positions."""
    longest = model.longest
    if wanted is not None and wanted < 1:
        raise UserError(f"max_length={wanted} must be at least 1")
    if wanted is not None and longest is not None and wanted > longest:
        raise UserError(f"max_length={wanted} is beyond the {longest} tokens the model can read: lower it")
    return wanted or model.config.context
