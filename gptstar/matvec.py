"""A matrix times one vector on a CPU, at the speed at which the memory gives the matrix.

That is what decoding one sequence consists of, and the libraries' matrix products, made for many rows, read at half of
that speed or less. torch.compile makes such loops itself, good ones but for bf16, for which `matvec` is an operator of
torch, too (generation/decoding.py).
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, library

from gptstar.native import compiled

_operators = library.Library("gptstar", "FRAGMENT")
_operators.define("matvec(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether matvec does x @ weight.T + bias: one row, on a CPU, everything contiguous, fp32 or bf16."""
    return (
        x.numel() == x.shape[-1]
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == weight.dtype
        and x.is_contiguous()
        and weight.is_contiguous()
        and (bias is None or (bias.dtype == x.dtype and bias.is_contiguous()))
        and available()
    )


def takes_int8(x: Tensor, codes: Tensor) -> bool:
    """Whether matvec_int8 does Int8Matrix's product."""
    return x.numel() == x.shape[-1] and x.device.type == codes.device.type == "cpu" and available()


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether this machine could compile it."""
    return _functions() is not None


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for x (..., K) of one row, weight (N, K), bias (N,); summed in fp32."""
    wide_x, wide_bias = x.float(), None if bias is None else bias.float()
    y = torch.empty((*x.shape[:-1], len(weight)), dtype=torch.float32)
    function = _functions()["float32" if weight.dtype == torch.float32 else "bfloat16"]
    bias_at = None if wide_bias is None else wide_bias.data_ptr()
    function(weight.data_ptr(), wide_x.data_ptr(), bias_at, y.data_ptr(), *weight.shape)
    return y.to(x.dtype)


def matvec_int8(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(x @ codes.T) * scale in 8 bits for x (..., K) of one row, int8 codes (N, K), scale (N,), in the dtype of x."""
    wide_x = x.float().contiguous()
    y = torch.empty((*x.shape[:-1], len(codes)), dtype=torch.float32)
    _functions()["int8"](codes.data_ptr(), scale.data_ptr(), wide_x.data_ptr(), y.data_ptr(), *codes.shape)
    return y.to(x.dtype)


@cache
def _functions() -> Any:
    """{dtype of the matrix: function}, or None"""
    found = compiled(Path(__file__).with_name("matvec.cpp"))
    if found is None:
        return None
    functions = {kind: getattr(found, f"matvec_{kind}") for kind in ("float32", "bfloat16", "int8")}
    for function in functions.values():
        function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 2, None
    return functions


@partial(library.register_fake, "gptstar::matvec", lib=_operators)
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_operators.impl("matvec", matvec, "CPU")
