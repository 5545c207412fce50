"""The large matrices: the table of tokens, and several Linear layers kept as one matrix, so that the hardware runs one
large matmul, saved under separate names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.matmul import linear


class Linear(nn.Linear):
    """torch's, through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class TokenTable(nn.Embedding):
    """(V, C), a row a token: looked up where tokens come in, multiplied with where scores go out."""

    @property
    def dense(self) -> Tensor:
        """(V, C)"""
        return self.weight

    def scores(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """(..., C) -> (..., V)"""
        return F.linear(hidden, self.weight, bias)


class FusedLinear(nn.Module):
    """Linear layers that share their input (`join="outputs"`) or sum into one output (`join="inputs"`).

        outputs: y = [x @ W1.T + b1, x @ W2.T + b2, ...]      W stacked along dim 0, (sum of widths, d)
        inputs:  y = x1 @ W1.T + b1 + x2 @ W2.T + b2 + ...    W stacked along dim 1, (d, sum of widths)

    `bias`: True or False for all parts, or the names of those that have one.

    In memory there is one `weight`, what optimizers and `named_parameters` see. In a state dict each part stands
    under its own name, `NAME.weight` and `NAME.bias`, relative to the module that holds this one: a checkpoint does
    not know what was fused, so the same names serve every block and fused and unfused models read each other's files.
    """

    def __init__(
        self, parts: dict[str, int], d: int, join: str = "outputs", bias: bool | Collection[str] = True
    ) -> None:
        super().__init__()
        self.parts, self.join = parts, join
        self.biased = [name for name in parts if bias is True or (bias is not False and name in bias)]
        total = sum(parts.values())
        self.dim = 0 if join == "outputs" else 1
        self.weight = nn.Parameter(torch.empty((total, d) if join == "outputs" else (d, total)))
        # With joined inputs each part has a bias of full width, of which only the sum matters to the output.
        lengths = [parts[name] for name in self.biased]
        shape = (sum(lengths),) if join == "outputs" else (len(lengths), d)
        self.bias = nn.Parameter(torch.empty(shape)) if self.biased else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., total), or (..., total) -> (..., d)."""
        return linear(x, self.weight, self._whole_bias())

    def apart(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """The terms of the sum that joined inputs make, one for each part's own input."""
        biases = self._bias_views()
        views = self.weight_views(self.weight)
        return [linear(x, views[name], biases.get(name)) for x, name in zip(xs, self.parts, strict=True)]

    def _whole_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        if self.join == "inputs":
            return self.bias.sum(0)
        if len(self.biased) == len(self.parts):
            return self.bias
        views = self._bias_views()
        return torch.cat([views.get(name, self.bias.new_zeros(width)) for name, width in self.parts.items()])

    def weight_views(self, tensor: Tensor) -> dict[str, Tensor]:
        """The parts of a tensor laid out like `weight` (itself, a gradient, a moment): {part: view}."""
        return dict(zip(self.parts, tensor.split(list(self.parts.values()), self.dim), strict=True))

    def _bias_views(self) -> dict[str, Tensor]:
        if self.bias is None:
            return {}
        widths = [self.parts[name] for name in self.biased]
        pieces = self.bias.split(widths) if self.join == "outputs" else self.bias.unbind(0)
        return dict(zip(self.biased, pieces, strict=True))

    def extra_repr(self) -> str:
        return f"{self.parts}, join={self.join}, biased={self.biased}"

    def named_views(self, prefix: str) -> dict[str, Tensor]:
        """{name in a state dict: view of the part}, where `prefix` is this module's own, with its last dot."""
        parent = prefix[:-1].rpartition(".")[0]
        lead = f"{parent}." if parent else ""
        weights = {f"{lead}{part}.weight": view for part, view in self.weight_views(self.weight).items()}
        return weights | {f"{lead}{part}.bias": view for part, view in self._bias_views().items()}

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        for name, view in self.named_views(prefix).items():
            destination[name] = view if keep_vars else view.detach()


def load_fused_parts(module: nn.Module, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
    """A load_state_dict pre-hook for the module that holds the whole model: fills its fused layers part by part.

    torch hands a child only the names below its own, and the parts' names are not, so their holder has to do it.
    """
    for path, fused in module.named_modules():
        if not isinstance(fused, FusedLinear):
            continue
        for name, view in fused.named_views(f"{prefix}{path}.").items():
            part = state_dict.pop(name, None)
            if part is None:
                missing.append(name)
            elif part.shape != view.shape:
                errors.append(f"{name}: shape {tuple(part.shape)}, expected {tuple(view.shape)}")
            else:
                with torch.no_grad():
                    view.copy_(part)
        # What torch itself would look for next: it is filled already.
        for name, parameter in fused.named_parameters():
            state_dict[f"{prefix}{path}.{name}"] = parameter
