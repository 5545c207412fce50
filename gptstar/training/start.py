"""Where a new run's weights come from: chance, or a model that was trained before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.model.adapters import is_adapter
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import empty_model
from gptstar.pretrained.load import load
from gptstar.pretrained.star_archive import is_star_archive, read_moments
from gptstar.training.spread import like_its_parameter


@dataclass(frozen=True)
class Origin:
    """What a run starts from. moments: AdamW's, by state-dict name, where the source has them."""

    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    moments: dict[str, dict[str, Tensor]] | None


def read_origin(source: str, config: ModelConfig) -> Origin:
    """Loads `init_from`. Raises UserError for what cannot be loaded, or does not fit the configuration."""
    model, tokenizer = load(source, dtype=torch.float32)
    path = Path(source).expanduser()
    with on_meta():
        shapes = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [f"{name} is missing" for name in shapes.keys() - theirs.keys() if not is_adapter(name)]
    wrong += [f"{name} has no place" for name in theirs.keys() - shapes.keys()]
    common = [name for name in shapes if name in theirs and theirs[name] != shapes[name]]
    wrong += [f"{name} is {theirs[name]}, not {shapes[name]}" for name in common]
    if wrong:
        raise UserError(f"init_from={source} does not fit the model: {'; '.join(sorted(wrong))}")
    return Origin(model.state_dict(), tokenizer, read_moments(path) if is_star_archive(path) else None)


def begin_with(origin: Origin, model: GPT) -> None:
    """Fills a model. Adapters that the source does not have stay as they are."""
    _fill(model, origin.weights)


def begin_optimizer_with(origin: Origin, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Puts AdamW's moments, if the source has them, where AdamW looks for them; other optimizers begin anew.

    A copy of the model takes them in like weights, so that they end up fused as its parameters are.
    """
    if origin.moments is None or not isinstance(optimizer, torch.optim.AdamW):
        return
    step = max(parts["step"] for parts in origin.moments.values())
    for kind in ("exp_avg", "exp_avg_sq"):
        shadow = empty_model(model.config, model.device, torch.float32, torch.float32)
        for parameter in shadow.parameters():
            parameter.detach().zero_()
        _fill(shadow, {name: parts[kind] for name, parts in origin.moments.items()})
        for parameter, moment in zip(model.parameters(), shadow.parameters(), strict=True):
            if parameter.requires_grad:
                optimizer.state[parameter][kind] = like_its_parameter(moment.detach(), parameter)
                optimizer.state[parameter]["step"] = step.clone().to(parameter.device)


def _fill(model: GPT, tensors: dict[str, Tensor]) -> None:
    fresh = {name: value for name, value in model.state_dict().items() if is_adapter(name)}
    model.load_state_dict({**fresh, **tensors})
