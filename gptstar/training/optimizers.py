"""Optimizers and their parameter groups. A new optimizer is a function here and an entry in `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.mup import channel_readers
from gptstar.model.own import completed
from gptstar.training.lion import Lion
from gptstar.training.muon import MuonAdamW


@dataclass
class OptimizerConfig:
    """What moves the weights.

    name          adamw, muon (with AdamW for what is no matrix of a block), lion, adafactor or adamw_8bit
    lr            the schedule's maximum
    betas         decay of the first and second moment (adafactor has a rule of its own)
    eps           added to AdamW's denominator
    momentum      decay of Muon's moment
    weight_decay  for matrices; biases, norms and other vectors are never decayed
    own           settings that an optimizer of one's own brings (docs/your_first_idea.md)
    """

    name: str = "adamw"
    lr: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            known = f"choose one of {', '.join(OPTIMIZERS)}, or name the file that adds it (ideas=[FILE.py])"
            raise ValueError(f"optimizer.name={self.name!r} is unknown: {known}")
        self.own = completed(self.own, [OPTIMIZERS[self.name]], "optimizer.own", OPTIMIZERS.values())
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr} must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay} must not be negative")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum} must lie in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"optimizer.eps={self.eps} must be above 0")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices with weight decay, everything else without; every trainable parameter in exactly one group.

    Under muP matrices that read channels are a group of their own before them, with `lr_factor`, its learning rate as
    a share of the others' (`gptstar.model.mup`).
    """
    ratio = _width_ratio(model)
    readers = {id(weight) for weight in channel_readers(model)} if ratio != 1 else set()
    own: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2 and not name.endswith("bias")  # a FusedLinear's bias may have two dimensions
        (own if id(parameter) in readers else decayed if matrix else plain).append(parameter)
    groups: list[dict] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [{"params": own, **_scaled(weight_decay, 1 / ratio)}, *groups] if ratio != 1 else groups


def _width_ratio(model: nn.Module) -> float:
    config = getattr(model, "config", None)
    return config.width_ratio if isinstance(config, ModelConfig) else 1.0


def _scaled(weight_decay: float, factor: float) -> dict:
    """A group's settings. lr * decay sets how many steps a weight is an average over, which no width should change."""
    return {"weight_decay": weight_decay / factor, "lr_factor": factor}


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's AdamW (Loshchilov & Hutter, arXiv:1711.05101), fused: one pass over parameters, gradients and moments."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=_two(config), eps=config.eps, fused=True)


def muon(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """See `gptstar.training.muon`."""
    *matrices, plain = (group["params"] for group in parameter_groups(model, config.weight_decay))
    settings = (config.lr, config.momentum, config.weight_decay, _two(config), config.eps)
    optimizer = MuonAdamW(model, [p for group in matrices for p in group], plain, *settings)
    if (ratio := _width_ratio(model)) != 1:
        # All singular values of an update are lr * 0.2 * sqrt(max(rows, columns)), and what a matrix adds to its output
        # keeps its size where they do (Yang et al., arXiv:2310.17813). Adam's updates have few: lr / ratio there.
        optimizer.param_groups[0].update(_scaled(config.weight_decay, ratio**-0.5))
    return optimizer


def lion(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """See `gptstar.training.lion`."""
    return Lion(parameter_groups(model, config.weight_decay), config.lr, _two(config))


def adafactor(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's Adafactor (Shazeer & Stern, arXiv:1804.04235): a row and a column of second moments a matrix.

    Steps are relative to the size of a tensor, at least 1e-3.
    """
    return torch.optim.Adafactor(parameter_groups(model, config.weight_decay), lr=config.lr)


def adamw_8bit(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """torchao's AdamW with moments in 8 bits (Dettmers et al., arXiv:2110.02861): a quarter of their memory."""
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameter_groups(model, config.weight_decay), lr=config.lr, betas=_two(config), eps=config.eps)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
    "lion": lion,
    "adafactor": adafactor,
    "adamw_8bit": adamw_8bit,
}


def check_optimizer(config: OptimizerConfig, model: ModelConfig) -> None:
    """Raises UserError where the package that `optimizer.name` needs is missing, and for what it cannot do with muP."""
    if model.mup_base_width and config.name == "adafactor":
        raise UserError(
            f"optimizer=adafactor takes steps relative to the size of the weights, for which model.mup_base_width="
            f"{model.mup_base_width} has no rule: choose {_others('adafactor')}, or set it to 0"
        )
    if model.mup_base_width and config.name == "muon" and model.adapter_width:
        raise UserError(
            f"optimizer=muon orthogonalises adapters, for which model.mup_base_width={model.mup_base_width} has no "
            f"rule: choose {_others('adafactor', 'muon')}, or set one of model.adapter_width and it to 0"
        )
    if config.name == "adamw_8bit" and find_spec("torchao") is None:
        raise UserError("optimizer=adamw_8bit needs the torchao package: pip install 'gptstar[torchao]'")


def _others(*names: str) -> str:
    return ", ".join(name for name in OPTIMIZERS if name not in names)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer a configuration names, over all parameters of the model."""
    optimizer = OPTIMIZERS[config.name](model, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer.name={config.name} makes a {type(optimizer).__name__}: return a torch.optim.Optimizer"
        )
    set_learning_rate(optimizer, config.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One rate for all groups, times a factor of their own where muP gives them one."""
    for group in optimizer.param_groups:
        own = lr * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):  # torchao's, so that its compiled step serves every rate
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def _two(config: OptimizerConfig) -> tuple[float, float]:
    first, second = config.betas  # a list, where it comes from YAML
    return first, second
