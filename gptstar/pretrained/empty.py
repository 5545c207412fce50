"""A model before it has its weights: on its device, in the precision that is wanted."""

from __future__ import annotations

import torch

from gptstar.device import DTYPES
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta, unsaved, with_storage, with_unsaved
from gptstar.model.transformer import GPT
from gptstar.quantization.quantize import KINDS, prepare_quantized, quantization_of

Dtype = torch.dtype | str | None  # str: a kind of quantised weights; None: as they were saved


def pick_dtype(name: torch.dtype | str | None) -> Dtype:
    """Names of precisions as torch's; None and auto are None. Raises UserError for an unknown one."""
    if name is None or name == "auto" or isinstance(name, torch.dtype) or name in KINDS:
        return None if name == "auto" else name
    if name not in DTYPES:
        raise UserError(f"dtype={name!r} is unknown: choose one of auto, fp32, bf16, fp16, {', '.join(KINDS)}")
    return DTYPES[name]


def empty_model(config: ModelConfig, device: torch.device | str, dtype: Dtype, stored: torch.dtype) -> GPT:
    """A GPT whose state dict is to be filled; what is filled into a quantised one is quantised on the way.

    stored: what the weights were saved in.
    """
    with on_meta():
        model = GPT(config)
    lost = list(unsaved(model))  # tables that a block of one's own does not save, for it can make them again
    if isinstance(dtype, str):
        exact = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        model = with_storage(prepare_quantized(model.to(dtype=exact), dtype), device)
    else:
        model = with_storage(model.to(dtype=dtype or stored), device)
    return with_unsaved(model, GPT(config), lost) if lost else model


def refuse_quantized(model: GPT) -> None:
    """Raises UserError for a model whose exact weights are not there, where they are needed."""
    if not any(True for _ in model.blocks.parameters()):
        raise UserError("a model under a memory budget cannot be saved or exported: load it without one")
    if quantization_of(model):
        raise UserError("a quantised model (dtype=int8, int4) cannot be saved or exported: load it without dtype")
