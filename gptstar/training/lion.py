"""Lion: every weight moves by the sign of an average gradient (Chen et al., arXiv:2302.06675)."""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """One moment a parameter, half of AdamW's memory. Every step is as long as the learning rate, which is therefore a
    third to a tenth of AdamW's, with as much more weight decay.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "moment" not in self.state[p]:
                    self.state[p]["moment"] = torch.zeros_like(p)
            moments = [self.state[p]["moment"] for p in parameters]
            first, second = group["betas"]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            signs = torch._foreach_sign(torch._foreach_lerp(moments, gradients, 1 - first))
            torch._foreach_add_(parameters, signs, alpha=-group["lr"])
            torch._foreach_lerp_(moments, gradients, 1 - second)
