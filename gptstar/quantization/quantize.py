"""Which layers of a model are quantised, and how one gets there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from gptstar.errors import UserError
from gptstar.model.adapters import Adapter
from gptstar.model.meta import on_meta, unsaved, with_storage, with_unsaved
from gptstar.model.projections import FusedLinear, Linear, TokenTable
from gptstar.model.transformer import GPT
from gptstar.quantization.int8 import Int8Matrix
from gptstar.quantization.layers import QuantizedFused, QuantizedLinear, QuantizedTable, new_int4

KINDS = ("int8", "int4")
M = TypeVar("M", bound=nn.Module)


def prepare_quantized(model: M, kind: str) -> M:
    """Puts quantised layers without contents in the place of the linear layers and token tables of a model or block.

    kind: int8, or int4 (token tables, and matrices of sizes that torch's kernels do not take, are int8 there too).
    Norms, biases, positions, gates and adapters stay as they are. The model may be on the meta device; what fills its
    state dict afterwards quantises it. Raises UserError for an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of quantised weights: choose one of {', '.join(KINDS)}")
    return replace_layers(model, partial(_quantized, kind=kind))


def replace_layers(model: M, new: Callable[[nn.Module], nn.Module]) -> M:
    """Puts `new` of every module in its place, in a model or a block; adapters stay as they are."""
    for module in list(model.modules()):
        if isinstance(module, Adapter):
            continue
        for name, child in list(module.named_children()):
            setattr(module, name, new(child))
    return model


def _quantized(module: nn.Module, kind: str) -> nn.Module:
    new_matrix = new_int4 if kind == "int4" else Int8Matrix
    if type(module) is FusedLinear:
        return QuantizedFused(module, new_matrix)
    if type(module) is TokenTable:
        return QuantizedTable(module, kind)
    if isinstance(module, nn.Linear) and type(module) in (nn.Linear, Linear):
        return QuantizedLinear(module, new_matrix)
    return module


@torch.no_grad()
def quantize(model: GPT, kind: str) -> GPT:
    """A quantised copy of a model, on its device, in evaluation mode. UserError for one that is quantised already."""
    if quantization_of(model) is not None:
        raise UserError("the model is quantised already: its exact weights are gone, load them again")
    if not any(True for _ in model.blocks.parameters()):
        raise UserError("a model under a memory budget is quantised as it is loaded: give its dtype there")
    with on_meta():
        copy = GPT(model.config)
    lost = list(unsaved(copy))
    copy = with_storage(prepare_quantized(copy.to(dtype=model.dtype), kind), model.device)
    weights = model.state_dict()
    for name, home in copy.state_dict().items():
        home.copy_(weights[name])
    return with_unsaved(copy, model, lost).eval()


def quantization_of(model: GPT) -> str | None:
    """Which kind a model is, or None for one that is not quantised."""
    return model.embedding.kind if isinstance(model.embedding, QuantizedTable) else None
