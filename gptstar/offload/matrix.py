"""Layers of which the matrices lie in memory as they lie in a file, in one piece or several, and stay so.

A matrix is never turned into other numbers as a whole: few rows of input are multiplied with the stored numbers as they
are read (matvec.cpp), many with some rows of the matrix at a time in fp32. On a GPU products are in the stored dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.cpu import matvec
from gptstar.cpu.fast_linear import TILE, tiled_linear
from gptstar.model.matmul import matmul
from gptstar.model.projections import FusedLinear, Linear, TokenTable
from gptstar.quantization.int8 import TILE_SIZE
from gptstar.quantization.layers import QuantizedFused, QuantizedLinear
from gptstar.quantization.quantize import replace_layers


class StoredMatrix(nn.Module):
    """(N, K), bound to tensors that are its rows or columns; nothing of them is copied."""

    def __init__(self, n_row: int, n_column: int) -> None:
        super().__init__()
        self.shape = torch.Size((n_row, n_column))
        self.pieces: list[Tensor] = []
        self.side_by_side = False
        self.order: Tensor | None = None

    def bind(self, pieces: list[Tensor], side_by_side: bool = False, order: Tensor | None = None) -> None:
        """pieces: one below the other, or side by side; row n of the matrix is then row order[n] of those."""
        self.pieces, self.side_by_side, self.order = pieces, side_by_side, order

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T, (..., K) -> (..., N), in the dtype of x."""
        y = product(x, self.pieces, self.side_by_side)
        return y if self.order is None else y[..., self.order]


class StoredLinear(QuantizedLinear):
    """nn.Linear over a StoredMatrix; the bias is a parameter as before."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, StoredMatrix)


class StoredFused(QuantizedFused):
    """FusedLinear over one StoredMatrix, or for joined inputs one of each part, whose products are one sum."""

    def __init__(self, layer: FusedLinear) -> None:
        super().__init__(layer, StoredMatrix)

    def forward(self, x: Tensor) -> Tensor:
        parts = cast(list[StoredMatrix], list(self.matrices))
        alike = all(part.order is None and (part.side_by_side or len(part.pieces) == 1) for part in parts)
        if self.join != "inputs" or not alike:
            return super().forward(x)
        y = product(x, [piece for part in parts for piece in part.pieces], True)
        bias = self._whole_bias()
        return y if bias is None else y.add_(bias)


class StoredTable(TokenTable):
    """The table of tokens as it is stored, turned into other numbers where it is read."""

    def __init__(self, n_row: int, n_column: int, stored: torch.dtype, computed: torch.dtype) -> None:
        super().__init__(n_row, n_column, dtype=stored)
        self.computed = computed

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).to(self.computed)

    def scores(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        scores = product(hidden, [self.weight], False)
        return scores if bias is None else scores + bias


def prepare_stored(module: nn.Module) -> nn.Module:
    """Puts stored layers, not bound to anything yet, in the place of a block's linear ones."""
    return replace_layers(module, _stored)


def _stored(module: nn.Module) -> nn.Module:
    if type(module) is FusedLinear:
        return StoredFused(module)
    if isinstance(module, nn.Linear) and type(module) in (nn.Linear, Linear):
        return StoredLinear(module)
    return module


def product(x: Tensor, pieces: Sequence[Tensor], side_by_side: bool) -> Tensor:
    """x @ torch.cat(pieces, int(side_by_side)).T, (..., K) -> (..., N), in the dtype of x, and on a CPU summed in fp32.

    In fp32 with pieces in half precision the result is that of the matrix in fp32.
    """
    if x.device.type != "cpu":
        if side_by_side:
            parts = x.split([piece.shape[1] for piece in pieces], -1)
            products = [_on_gpu(part, piece) for part, piece in zip(parts, pieces, strict=True)]
            return products[0] if len(products) == 1 else torch.stack(products).sum(0)
        return torch.cat([_on_gpu(x, piece) for piece in pieces], -1)
    wide = x.float().contiguous()
    if all(piece.stride(0) == 1 and len(piece) > 1 and piece.shape[1] > 1 for piece in pieces):  # (in, out) in the file
        if side_by_side:
            parts = wide.split([piece.shape[1] for piece in pieces], -1)
            terms = [_turned(part, piece) for part, piece in zip(parts, pieces, strict=True)]
            return torch.stack(terms).sum(0).to(x.dtype)
        return torch.cat([_turned(wide, piece) for piece in pieces], -1).to(x.dtype)
    if matvec.takes_pieces(wide, pieces):
        return torch.ops.gptstar.matvec_pieces(wide, list(pieces), side_by_side).to(x.dtype)
    if side_by_side:
        return tiled_linear(wide, pieces[0].shape[0], lambda start, end: _beside(pieces, start, end)).to(x.dtype)
    return tiled_linear(wide, sum(map(len, pieces)), lambda start, end: _below(pieces, start, end)).to(x.dtype)


def _turned(x: Tensor, piece: Tensor) -> Tensor:
    """x @ piece.T for a piece that is a matrix turned over, of which some rows at a time are there in fp32."""
    matrix, y = piece.t(), torch.zeros(*x.shape[:-1], len(piece)).flatten(0, -2)
    step, flat = max(1, TILE // len(piece)), x.reshape(-1, x.shape[-1])
    with torch.no_grad():
        for start in range(0, len(matrix), step):
            y += matmul(flat[:, start : start + step].contiguous(), matrix[start : start + step].float())
    return y.view(*x.shape[:-1], -1)


def _on_gpu(x: Tensor, piece: Tensor) -> Tensor:
    if piece.dtype == x.dtype:
        return F.linear(x, piece)
    rows = piece.split(max(1, TILE_SIZE // piece.shape[1]))
    return torch.cat([F.linear(x, some.to(x.dtype)) for some in rows], -1)


def _beside(pieces: Sequence[Tensor], start: int, end: int) -> Tensor:
    """Rows of pieces that are side by side, in fp32."""
    if len(pieces) == 1:
        return pieces[0][start:end].float()
    tile = torch.empty(end - start, sum(piece.shape[1] for piece in pieces))
    for piece, part in zip(pieces, tile.split([piece.shape[1] for piece in pieces], 1), strict=True):
        part.copy_(piece[start:end])
    return tile


def _below(pieces: Sequence[Tensor], start: int, end: int) -> Tensor:
    """Rows of pieces that are one below the other, in fp32."""
    tile = torch.empty(end - start, pieces[0].shape[1])
    for piece, after in zip(pieces, accumulate(map(len, pieces)), strict=True):
        before = after - len(piece)
        first, last = max(start, before), min(end, after)
        if first < last:
            tile[first - start : last - start].copy_(piece[first - before : last - before])
    return tile
