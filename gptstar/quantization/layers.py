"""What stands in a quantised model where the layers with large matrices stood.

In a state dict a quantised matrix, or the part of it that has a name of its own, is a `Home`: a place that other
weights can be copied to, and no tensor. So whatever fills a model fills a quantised one, a matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from gptstar.model.projections import FusedLinear, TokenTable
from gptstar.quantization.int4 import Int4Matrix
from gptstar.quantization.int8 import Int8Matrix

Matrix = Int8Matrix | Int4Matrix
NewMatrix = Callable[[int, int], nn.Module]  # rows, columns -> a matrix without contents
BLOCK = 2**22  # numbers that are quantised at a time


class Home:
    """Rows of a quantised matrix, as far as those who fill a state dict use a tensor."""

    def __init__(self, matrix: nn.Module, start: int, end: int) -> None:
        self.matrix, self.start = cast(Matrix, matrix), start
        self.shape = torch.Size((end - start, self.matrix.shape[1]))

    def numel(self) -> int:
        """How many numbers there are."""
        return self.shape.numel()

    def to(self, device: str) -> Tensor:
        """A tensor without contents that has this shape."""
        assert device == "meta"
        return torch.empty(self.shape, device="meta")

    def detach(self) -> Home:
        """Itself."""
        return self

    def copy_(self, rows: Tensor) -> None:
        """Quantises."""
        self.copy_from(0, rows)

    def copy_from(self, start: int, rows: Tensor) -> None:
        """Quantises some of the rows, which begin with row `start` of these, a block at a time."""
        step = max(1, BLOCK // rows.shape[1])
        for at in range(0, len(rows), step):
            self.matrix.set_rows(self.start + start + at, rows[at : at + step])


class QuantizedLinear(nn.Linear):
    """nn.Linear, its weights quantised; the bias stays as it is."""

    def __init__(self, layer: nn.Linear, new_matrix: NewMatrix) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = None, layer.bias  # type: ignore[assignment]
        self.matrix = new_matrix(layer.out_features, layer.in_features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix(x)
        return y if self.bias is None else y.add_(self.bias)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = Home(self.matrix, 0, self.out_features)


class QuantizedFused(FusedLinear):
    """FusedLinear, its weights quantised.

    Parts that are summed (`join="inputs"`) are matrices of their own: what they are multiplied with differs in size.
    """

    def __init__(self, layer: FusedLinear, new_matrix: NewMatrix) -> None:
        nn.Module.__init__(self)
        self.parts, self.join, self.biased, self.dim = layer.parts, layer.join, layer.biased, layer.dim
        self.weight, self.bias = None, layer.bias  # type: ignore[assignment]
        n_out, n_in = layer.weight.shape
        self.widths = list(self.parts.values())
        self.matrices = nn.ModuleList(
            new_matrix(n_out, width) for width in (self.widths if self.join == "inputs" else [n_in])
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.join == "inputs":
            first, *others = self._terms(x.split(self.widths, -1))
            y = first
            for term in others:
                y = y.add_(term)
        else:
            y = self.matrices[0](x)
        bias = self._whole_bias()
        return y if bias is None else y.add_(bias)

    def apart(self, xs: Sequence[Tensor]) -> list[Tensor]:
        biases = self._bias_views()
        terms = zip(self._terms(xs), self.parts, strict=True)
        return [y if name not in biases else y + biases[name] for y, name in terms]

    def _terms(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return [matrix(x) for matrix, x in zip(self.matrices, xs, strict=True)]

    def weight_views(self, tensor: Tensor) -> dict[str, Tensor]:
        """The homes of the parts' weights."""
        if self.join == "inputs":
            homes = [Home(matrix, 0, cast(Matrix, matrix).shape[0]) for matrix in self.matrices]
        else:
            ends = list(accumulate(self.widths))
            homes = [Home(self.matrices[0], end - width, end) for end, width in zip(ends, self.widths, strict=True)]
        return cast(dict[str, Tensor], dict(zip(self.parts, homes, strict=True)))


class QuantizedTable(TokenTable):
    """The table of tokens in 8 bits, looked up and multiplied with."""

    def __init__(self, table: TokenTable, kind: str) -> None:
        nn.Module.__init__(self)
        self.kind = kind  # of the model
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.register_buffer("like", torch.empty(0, dtype=table.weight.dtype), persistent=False)
        self.matrix = Int8Matrix(table.num_embeddings, table.embedding_dim)
        self.weight = None  # type: ignore[assignment]

    @property
    def dtype(self) -> torch.dtype:
        """What it is looked up in."""
        return cast(Tensor, self.like).dtype

    @property
    def dense(self) -> Tensor:
        """The table that is meant, (V, C)."""
        return self.matrix.dense(self.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix.take(tokens, self.dtype)

    def scores(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        y = self.matrix(hidden)
        return y if bias is None else y.add_(bias)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = Home(self.matrix, 0, self.num_embeddings)


def new_int4(n_row: int, n_column: int) -> Matrix:
    """In 4 bits where the kernels take the shape, else in 8."""
    return (Int4Matrix if Int4Matrix.fits(n_row, n_column) else Int8Matrix)(n_row, n_column)
