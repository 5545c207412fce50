"""Linear layers on a CPU, without gradients, through whatever is the fastest there.

One row, or a few, go to our own loop (matvec.py), more to the library that model/matmul.py picks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptstar.cpu import matvec
from gptstar.model.matmul import one_dnn_linear, one_dnn_takes

SMALL = 2**14  # numbers of input that lie in the nearest cache
TILE = 2**21  # numbers of a matrix that are made at a time: 8 MB, about a cache


def fast_linear(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """While entered, without gradients and autocast, F.linear uses what is fastest for tensors of this kind."""
    known = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    otherwise = torch.is_grad_enabled() or torch.is_autocast_enabled(device.type)
    return _Fastest() if known and not otherwise else nullcontext()


def tiled_linear(x: Tensor, n_row: int, rows: Callable[[int, int], Tensor]) -> Tensor:
    """x @ W.T for a matrix (n_row, K) that is kept in another form, fp32 (..., K) -> (..., n_row), on a CPU.

    rows: W[start:end] in fp32. Only a tile of it is there at a time.
    """
    flat = x.reshape(-1, x.shape[-1])
    y, step = flat.new_empty(len(flat), n_row), max(1, TILE // x.shape[-1])
    with torch.no_grad():
        for start in range(0, n_row, step):
            tile = rows(start, min(start + step, n_row))
            y[:, start : start + step] = _linear(flat, tile)
    return y.view(*x.shape[:-1], n_row)


class _Fastest(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if matvec.takes(input, weight, bias):
        return torch.ops.gptstar.matvec(input, weight, bias)
    if _is_small(input, weight, bias):
        y = torch.ops.gptstar.matvec_pieces(input.contiguous(), [weight], False)
        return y if bias is None else y.add_(bias)
    one_dnn = input.dim() > 1 and one_dnn_takes(input, weight)
    return (one_dnn_linear if one_dnn else F.linear)(input, weight, bias)


def _is_small(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the rows are few and lie in the nearest cache while a matrix goes by: then our loop is faster."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() <= SMALL
        and weight.dim() == 2
        and weight.shape[1] == x.shape[-1]
        and (bias is None or bias.shape == weight.shape[:1])
        and matvec.takes_pieces(x, [weight])
    )
