"""A matrix in 4 bits: a scale and an offset for every GROUP neighbours of a row (as in Frantar et al., "GPTQ",
arXiv:2210.17323, section 4, rounded to nearest).

On a CPU products are in fp32, exact for the rounded numbers: a few rows of input go through our own loop (matvec.cpp),
many through a matrix product of some rows at a time. On a GPU they are torch's own kernels, which want inputs in bf16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from gptstar.cpu import matvec
from gptstar.cpu.fast_linear import tiled_linear
from gptstar.errors import UserError
from gptstar.quantization.int8 import TILE_SIZE, keeping_dtype

GROUP = 32  # weights that share a scale and an offset: 1 bit a weight more than the codes
HALF = GROUP // 2
TILE = 64  # rows that a GPU's kernels take together
MIDDLE = 8


class Int4Matrix(nn.Module):
    """(N, K): weight = (code - 8) * scale + offset, codes 0 ... 15.

    codes: (N, K / 2) uint8, of which byte j of a group's 16 has neighbour j in its lower half and j + 16 in the upper.
    pairs: (N, K / GROUP, 2) bf16, scale and offset of each group.
    """

    codes: Tensor
    pairs: Tensor
    packed: Tensor

    def __init__(self, n_row: int, n_column: int) -> None:
        super().__init__()
        self.shape = torch.Size((n_row, n_column))
        self.register_buffer("codes", torch.empty(n_row, n_column // 2, dtype=torch.uint8), persistent=False)
        pairs = torch.empty(n_row, n_column // GROUP, 2, dtype=torch.bfloat16)
        self.register_buffer("pairs", pairs, persistent=False)
        # On a GPU, once all rows are there, what its kernel wants instead of the codes.
        self.register_buffer("packed", torch.empty(0), persistent=False)
        self._missing = n_row

    @staticmethod
    def fits(n_row: int, n_column: int) -> bool:
        """Whether the kernels take a matrix of this shape."""
        return n_row % TILE == 0 and n_column % GROUP == 0

    def set_rows(self, start: int, rows: Tensor) -> None:
        """Quantises rows of the matrix, which begin with row `start`."""
        grouped = rows.to(self.codes.device, torch.float32).unflatten(-1, (-1, GROUP))
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-30).bfloat16().float()
        offset = (low + MIDDLE * scale).bfloat16().float()
        codes = ((grouped - offset) / scale + MIDDLE).round_().clamp_(0, 15).to(torch.uint8)
        lower, upper = codes.split(HALF, -1)
        self.codes[start : start + len(rows)] = (lower | upper << 4).flatten(1)
        self.pairs[start : start + len(rows)] = torch.cat((scale, offset), -1).bfloat16()
        self._missing -= len(rows)
        self._pack()

    def filled(self) -> None:
        """To be said when codes and pairs have been written from outside."""
        self._missing = 0
        self._pack()

    def _pack(self) -> None:
        if self._missing > 0 or self.codes.device.type != "cuda" or self.packed.numel():
            return
        lower, upper = self.codes.view(self.shape[0], -1, HALF), self.codes.view(self.shape[0], -1, HALF) >> 4
        codes = torch.cat((lower & 15, upper), -1).flatten(1)
        inner = next(n for n in (8, 4, 2) if self.shape[1] % (16 * n) == 0)  # a tile has 16 n columns
        self.packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], inner)
        self.codes, self.pairs = self.codes[:0], self.pairs.transpose(0, 1).contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4Matrix:
        """Scales keep their precision whatever becomes of the model; what is packed is for one kind of device."""
        if self.packed.numel() and fn(self.packed[:0]).device.type != self.packed.device.type:
            raise UserError("weights in 4 bits are packed for their device: load the model onto the other one instead")
        super()._apply(keeping_dtype(fn), recurse)
        self._pack()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T, (..., K) -> (..., N), in the dtype of x."""
        if self.packed.numel():
            flat = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
            y = torch.ops.aten._weight_int4pack_mm(flat, self.packed, GROUP, self.pairs)
            return y.to(x.dtype).view(*x.shape[:-1], -1)
        if x.device.type != "cpu":  # no kernel for codes that are not packed
            step = max(1, TILE_SIZE // self.shape[1])
            parts = [slice(start, start + step) for start in range(0, self.shape[0], step)]
            return torch.cat([F.linear(x, _dense(self.codes[p], self.pairs[p]).to(x.dtype)) for p in parts], -1)
        wide = x.float().contiguous()
        if x.numel() == x.shape[-1] and matvec.available():
            return torch.ops.gptstar.matvec_int4(wide, self.codes, self.pairs).to(x.dtype)
        return _int4_linear(wide, self.codes, self.pairs).to(x.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is meant."""
        if self.packed.numel():  # the product with every unit vector
            one = torch.eye(self.shape[1], dtype=torch.bfloat16, device=self.packed.device)
            return self(one).t().to(dtype)
        return _dense(self.codes, self.pairs).to(dtype)


@library.custom_op("gptstar::int4_linear", mutates_args=())
def _int4_linear(x: Tensor, codes: Tensor, pairs: Tensor) -> Tensor:
    """Of several rows, on a CPU: torch.compile calls it as it is."""
    if matvec.takes_few(x):
        return torch.ops.gptstar.matvec_int4(x, codes, pairs)
    return tiled_linear(x, len(pairs), lambda start, end: _dense(codes[start:end], pairs[start:end]))


@_int4_linear.register_fake
def _(x: Tensor, codes: Tensor, pairs: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _dense(codes: Tensor, pairs: Tensor) -> Tensor:
    """The rows that are meant, in fp32."""
    if codes.device.type == "cpu" and matvec.available():
        return torch.ops.gptstar.unpack_int4(codes, pairs)
    both = codes.view(len(codes), -1, HALF)
    scale, offset = pairs.float().split(1, -1)
    return ((torch.cat((both & 15, both >> 4), -1).float() - MIDDLE) * scale + offset).flatten(1)
