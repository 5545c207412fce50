"""Several Linear layers kept as one matrix, so that the hardware runs one large matmul, saved under separate names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """Linear layers that share their input (`join="outputs"`) or sum into one output (`join="inputs"`).

        outputs: y = [x @ W1.T + b1, x @ W2.T + b2, ...]      W stacked along dim 0, (sum of widths, d)
        inputs:  y = x1 @ W1.T + b1 + x2 @ W2.T + b2 + ...    W stacked along dim 1, (d, sum of widths)

    In memory there is one `weight`, what optimizers and `named_parameters` see. In a state dict each part stands
    under its own name, `NAME.weight` and `NAME.bias`, relative to the module that holds this one: a checkpoint does
    not know what was fused, so the same names serve every block and fused and unfused models read each other's files.
    """

    def __init__(self, parts: dict[str, int], d: int, join: str = "outputs") -> None:
        super().__init__()
        self.parts, self.join = parts, join
        total = sum(parts.values())
        self.dim = 0 if join == "outputs" else 1
        self.weight = nn.Parameter(torch.empty((total, d) if join == "outputs" else (d, total)))
        # With joined inputs each part has a bias of full width, of which only the sum matters to the output.
        self.bias = nn.Parameter(torch.empty(total if join == "outputs" else (len(parts), d)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., total), or (..., total) -> (..., d)."""
        return F.linear(x, self.weight, self.bias if self.join == "outputs" else self.bias.sum(0))

    def views(self, tensor: Tensor) -> dict[str, Tensor]:
        """The parts of a tensor laid out like `weight` or `bias` (a gradient, a moment): {part: view}."""
        if tensor.shape == self.weight.shape:
            return dict(zip(self.parts, tensor.split(list(self.parts.values()), self.dim), strict=True))
        parts = tensor.split(list(self.parts.values())) if self.join == "outputs" else tensor.unbind(0)
        return dict(zip(self.parts, parts, strict=True))

    def extra_repr(self) -> str:
        return f"{self.parts}, join={self.join}"

    def named_views(self, prefix: str) -> dict[str, Tensor]:
        """{name in a state dict: view of the part}, where `prefix` is this module's own, with its last dot."""
        parent = prefix[:-1].rpartition(".")[0]
        lead = f"{parent}." if parent else ""
        return {
            f"{lead}{part}.{kind}": view
            for kind, tensor in (("weight", self.weight), ("bias", self.bias))
            for part, view in self.views(tensor).items()
        }

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
        state_dict[f"{prefix}{path}.weight"], state_dict[f"{prefix}{path}.bias"] = fused.weight, fused.bias
