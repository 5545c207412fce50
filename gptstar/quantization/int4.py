"""A matrix in 4 bits: a scale and an offset for every GROUP neighbours of a row (as in Frantar et al., "GPTQ",
arXiv:2210.17323, section 4, rounded to nearest), multiplied by torch's own kernels, which want inputs in bf16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.errors import UserError
from gptstar.quantization.int8 import keeping_dtype

GROUP = 32  # weights that share a scale and an offset: 1 bit a weight more than the codes
TILE = 64  # rows that the kernels take together
MIDDLE = 8


class Int4Matrix(nn.Module):
    """(N, K): weight = (code - 8) * scale + offset, codes 0 ... 15, scale and offset a group, in bf16."""

    codes: Tensor
    packed: Tensor
    scale_offset_GN2: Tensor

    def __init__(self, n_row: int, n_column: int) -> None:
        super().__init__()
        self.shape = torch.Size((n_row, n_column))
        # Codes a byte each until all rows are there, then packed as the device's kernel wants them.
        self.register_buffer("codes", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.register_buffer("packed", torch.empty(0), persistent=False)
        pairs = torch.empty(n_column // GROUP, n_row, 2, dtype=torch.bfloat16)
        self.register_buffer("scale_offset_GN2", pairs, persistent=False)
        self._missing = n_row

    @staticmethod
    def fits(n_row: int, n_column: int) -> bool:
        """Whether the kernels take a matrix of this shape."""
        return n_row % TILE == 0 and n_column % GROUP == 0

    def set_rows(self, start: int, rows: Tensor) -> None:
        """Quantises rows of the matrix, which begin with row `start`. Once all are there they are packed."""
        device, (n_row, n_column) = self.scale_offset_GN2.device, self.shape
        if not self.codes.numel():
            self.codes = torch.empty(n_row, n_column, dtype=torch.uint8, device=device)
        grouped = rows.to(device, torch.float32).unflatten(-1, (-1, GROUP))
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-30).bfloat16().float()
        offset = (low + MIDDLE * scale).bfloat16().float()
        codes = ((grouped - offset) / scale + MIDDLE).round_().clamp_(0, 15)
        self.codes[start : start + len(rows)] = codes.flatten(1).to(torch.uint8)
        pairs = torch.cat((scale, offset), -1).transpose(0, 1)
        self.scale_offset_GN2[:, start : start + len(rows)] = pairs.bfloat16()
        self._missing -= len(rows)
        if self._missing <= 0:
            self._pack()

    def _pack(self) -> None:
        if self.codes.device.type == "cuda":
            pairs = self.codes[:, ::2] << 4 | self.codes[:, 1::2]
            inner = next(n for n in (8, 4, 2) if self.shape[1] % (16 * n) == 0)  # a tile has 16 n columns
            self.packed = torch.ops.aten._convert_weight_to_int4pack(pairs, inner)
        elif self.codes.device.type == "cpu":
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self.codes.int(), 1)
        else:
            return  # no kernel: the codes stay as they are
        self.codes = torch.empty(0, dtype=torch.uint8)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4Matrix:
        """Scales keep their precision whatever becomes of the model; what is packed is for one kind of device."""
        if self.packed.numel() and fn(self.packed[:0]).device.type != self.packed.device.type:
            raise UserError("weights in 4 bits are packed for their device: load the model onto the other one instead")
        return super()._apply(keeping_dtype(fn), recurse)

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T, (..., K) -> (..., N), in the dtype of x."""
        if not self.packed.numel():
            return F.linear(x, self.dense(x.dtype))
        flat = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        kernel = torch.ops.aten._weight_int4pack_mm
        if x.device.type == "cpu":
            kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
        return kernel(flat, self.packed, GROUP, self.scale_offset_GN2).to(x.dtype).view(*x.shape[:-1], -1)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix that is meant."""
        if not self.codes.numel():  # the product with every unit vector
            one = torch.eye(self.shape[1], dtype=torch.bfloat16, device=self.packed.device)
            return self(one).t().to(dtype)
        scale, offset = self.scale_offset_GN2.float().permute(2, 1, 0)[..., None]
        grouped = self.codes.float().unflatten(-1, (-1, GROUP)) - MIDDLE
        return (grouped * scale + offset).flatten(1).to(dtype)
