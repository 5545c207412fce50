"""A matrix times one vector on a CPU, at the speed at which the memory gives the matrix.

That is what decoding one sequence consists of, and the libraries' matrix products are made for many rows. The operators
are in matvec.cpp:

    gptstar::matvec(x, weight, bias)        x @ weight.T + bias for x (..., K), weight (N, K), bias (N,), summed in fp32
    gptstar::matvec_int8(x, codes, scale)   (x @ codes.T) * scale in 8 bits for fp32 x, as Int8Matrix defines it

and for up to FEW rows of fp32 x:

    gptstar::matvec_int4(x, codes, pairs)   x @ matrix.T as Int4Matrix defines it; `unpack_int4` is the matrix
    gptstar::matvec_pieces(x, pieces, side_by_side)
                                            x @ torch.cat(pieces, int(side_by_side)).T in fp32, pieces in any precision

A row's result does not depend on how many rows there are, nor matvec_pieces' on where the matrix was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, library

from gptstar.cpu.native import load_operators
from gptstar.model.compiling import constant

FEW = 8  # rows; from there on a library's product of a whole matrix is faster


def takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether matvec does x @ weight.T + bias: one row, on a CPU, everything contiguous, fp32 or bf16."""
    return (
        x.numel() == x.shape[-1] > 0
        and weight.shape[1:] == x.shape[-1:]
        and x.device.type == weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == weight.dtype
        and x.is_contiguous()
        and weight.is_contiguous()
        and (bias is None or (bias.dtype == x.dtype and bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and available()
    )


def takes_int8(x: Tensor, codes: Tensor) -> bool:
    """Whether matvec_int8 does Int8Matrix's product, once x is fp32 and contiguous."""
    one_row = x.numel() == x.shape[-1] == codes.shape[1] > 0
    return one_row and x.device.type == codes.device.type == "cpu" and available()


def takes_few(x: Tensor) -> bool:
    """Whether the operators for few rows take these, once they are fp32 and contiguous."""
    return 0 < x.numel() <= FEW * x.shape[-1] and x.device.type == "cpu" and available()


def takes_pieces(x: Tensor, pieces: Sequence[Tensor]) -> bool:
    """Whether matvec_pieces does."""
    kinds = {piece.dtype for piece in pieces}
    return (
        takes_few(x)
        and len(kinds) == 1
        and kinds <= {torch.float32, torch.float16, torch.bfloat16}
        and all(piece.is_contiguous() and piece.device.type == "cpu" for piece in pieces)
    )


@constant
def available() -> bool:
    """Whether this machine could compile them."""
    return _load()


@cache
def _load() -> bool:
    loaded = load_operators(Path(__file__).with_name("matvec.cpp"))
    if loaded:
        for name in ("matvec", "matvec_int8", "matvec_int4"):
            library.register_fake(f"gptstar::{name}", empty_product)
    return loaded


def empty_product(x: Tensor, weight: Tensor, _: Tensor | None = None) -> Tensor:
    """What torch.compile is told of x @ weight.T: its shape."""
    return x.new_empty(*x.shape[:-1], weight.shape[0])
