"""Two learned numbers that weigh what comes from below against what comes past the layers between."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mix(nn.Module):
    """a * x + b * y, with learned a and b of the given start, kept as one vector."""

    draws = False

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.start = (a, b)
        self.weight = nn.Parameter(torch.empty(2))

    def initialize_own(self) -> None:
        """Called after the general initialisation."""
        with torch.no_grad():
            self.weight.copy_(self.weight.new_tensor(self.start))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.weight.unbind()  # without dimensions they leave x's and y's precision as it is
        return a * x + b * y
