"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix by about the orthogonal matrix
nearest to its momentum. torch.optim.Muon does that; here it gets every part of a fused layer as a matrix of its own,
because queries, keys, values and the feed-forward's input share storage and nothing else. Updates are scaled as large
as AdamW's (Liu et al., arXiv:2502.16982), so one learning rate and one schedule serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptstar.model.projections import FusedLinear


class MuonAdamW(torch.optim.Optimizer):
    """decayed, plain: the model's trainable parameters with and without weight decay; of the former, weights of linear
    layers are Muon's. Tables of tokens and positions, and whatever else a scheme learns, are AdamW's.
    """

    def __init__(
        self,
        model: nn.Module,
        decayed: list[nn.Parameter],
        plain: list[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        parts = {id(p): (p, views) for p, views in _matrices(model) if p.requires_grad}
        tables = [p for p in decayed if id(p) not in parts]
        groups: list[dict[str, Any]] = [
            {"params": [p for p, _ in parts.values()], "weight_decay": weight_decay},
            {"params": tables, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"lr": lr})
        # Parameters of Muon's that share the storage of the model's: each a part of one.
        self._parts = [(p, view, nn.Parameter(view(p.detach()))) for p, views in parts.values() for view in views]
        self._muon = torch.optim.Muon(
            [{"params": [part for *_, part in self._parts]}],  # a group, for it may be empty
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW(
            [{**group, "params": [*group["params"]]} for group in groups[1:]], lr=lr, betas=betas, eps=eps, fused=True
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both, at the learning rates and decays of `param_groups`."""
        assert closure is None
        inner = [*self._muon.param_groups, *self._adamw.param_groups]
        for ours, theirs in zip(self.param_groups, inner, strict=True):
            theirs.update(lr=ours["lr"], weight_decay=ours["weight_decay"])
        for whole, view, part in self._parts:
            part.grad = None if whole.grad is None else view(whole.grad)
        self._muon.step()
        self._adamw.step()
        for *_, part in self._parts:
            part.grad = None  # the model's gradient can be freed

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments; settings stay this optimizer's own."""
        for optimizer, state in ((self._muon, state_dict["muon"]), (self._adamw, state_dict["adamw"])):
            ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, settings in zip(optimizer.param_groups, ours, strict=True):
                group.update(settings)


View = Callable[[Tensor], Tensor]


def _matrices(model: nn.Module) -> list[tuple[nn.Parameter, list[View]]]:
    """Weights of linear layers, each with what gives its parts: of the weight itself, or of its gradient."""
    found: list[tuple[nn.Parameter, list[View]]] = []
    for module in model.modules():
        if isinstance(module, FusedLinear):
            found.append((module.weight, [partial(_part, module, name) for name in module.parts]))
        elif isinstance(module, nn.Linear):
            found.append((cast(nn.Parameter, module.weight), [_whole]))
    return found


def _part(layer: FusedLinear, name: str, tensor: Tensor) -> Tensor:
    return layer.weight_views(tensor)[name]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)
