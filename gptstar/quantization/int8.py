"""A matrix in 8 bits: a scale a row, symmetric, rounded to nearest.

Products are in 8 bits too where the processor does that fast (W8A8; Dettmers et al., "LLM.int8()", arXiv:2208.07339,
without its outlier columns): every row of the input gets a scale of its own as it comes, integers are multiplied
exactly, and the scales follow. So a row's result does not depend on the rows beside it, to the last bit (but for a
compiled step of one row, whose sums beyond 2 ** 24 are rounded).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.cpu import matvec

LARGEST = 127
TILE_SIZE = 2**24  # numbers that are there in full precision at a time, where no kernel takes codes


class Int8Matrix(nn.Module):
    """(N, K): codes int8 and scale (N,), so that row n is codes[n] * scale[n]."""

    codes: Tensor
    scale: Tensor

    def __init__(self, n_row: int, n_column: int) -> None:
        super().__init__()
        self.integers = int_mm_is_exact()  # whether products are in 8 bits on a CPU
        self.register_buffer("codes", torch.empty(n_row, n_column, dtype=torch.int8), persistent=False)
        self.register_buffer("scale", torch.empty(n_row, dtype=torch.float32), persistent=False)

    @property
    def shape(self) -> torch.Size:
        """(N, K)"""
        return self.codes.shape

    def set_rows(self, start: int, rows: Tensor) -> None:
        """Quantises rows of the matrix, which begin with row `start`."""
        rows = rows.to(self.codes.device, torch.float32)
        scale = quantization_scale(rows)
        self.scale[start : start + len(rows)] = scale[:, 0]
        self.codes[start : start + len(rows)] = (rows / scale).round_().to(torch.int8)

    def take(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows, (..., K) for int64 (...)."""
        return self.codes[index].to(dtype) * self.scale[index].to(dtype)[..., None]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is meant."""
        return self.codes.to(dtype) * self.scale.to(dtype)[:, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Matrix:
        """Scales keep their precision whatever becomes of the model."""
        return super()._apply(keeping_dtype(fn), recurse)

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T, (..., K) -> (..., N), in the dtype of x."""
        if x.device.type != "cpu" or not self.integers:
            step = max(1, TILE_SIZE // self.shape[1])
            tiles = zip(self.codes.split(step), self.scale.split(step), strict=True)
            return torch.cat([F.linear(x, c.to(x.dtype) * s.to(x.dtype)[:, None]) for c, s in tiles], -1)
        one_row, compiling = x.numel() == x.shape[-1], torch.compiler.is_compiling()
        if not compiling and matvec.takes_int8(x, self.codes):
            return torch.ops.gptstar.matvec_int8(x.float().contiguous(), self.codes, self.scale).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1]).float()
        scale = quantization_scale(flat)
        whole = (flat / scale).round_()
        if one_row and compiling:  # one loop over the codes; its sums are exact up to 2 ** 24, then rounded
            product = (self.codes.float() * whole).sum(-1)[None]
        else:
            product = torch._int_mm(whole.to(torch.int8), self.codes.t())
        # In place: what a long prompt makes in between can be larger than a layer's weights.
        return product.float().mul_(scale).mul_(self.scale).to(x.dtype).view(*x.shape[:-1], -1)


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What nn.Module does to its tensors, but where it would change their dtype they only move."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def quantization_scale(rows: Tensor) -> Tensor:
    """What the largest number of each row is 127 times of, (N, 1)."""
    return rows.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST


@cache
def int_mm_is_exact() -> bool:
    """Whether this processor multiplies int8 matrices without saturating in between, as those without VNNI may."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # whatever device is being built for
        a, b = (torch.randint(0, 2, (n, 512), generator=generator) * (2 * LARGEST) - LARGEST for n in (3, 64))
    try:
        return torch.equal(torch._int_mm(a.to(torch.int8), b.to(torch.int8).t()), (a @ b.t()).to(torch.int32))
    except RuntimeError:
        return False
