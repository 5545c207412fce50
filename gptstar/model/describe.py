"""What a configuration amounts to: parameters, FLOPs, bytes, and where they are."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import cast

from torch import Tensor, nn

from gptstar.model.block import Block
from gptstar.model.choices import BLOCKS, longest
from gptstar.model.config import ModelConfig
from gptstar.model.initialization import residual_scale
from gptstar.model.meta import on_meta
from gptstar.model.mup import channel_readers
from gptstar.model.positions import alibi_slopes
from gptstar.model.projections import FusedLinear
from gptstar.model.transformer import GPT


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters, the tied head counted once, of a model built without memory."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def flops_per_token(config: ModelConfig, n_token: int, n_frozen: int = 0) -> int:
    """Training FLOPs (forward + backward) a token in sequences of n_token: 6 N + 12 L d_attention T.

    N counts all parameters, the tied head once (Kaplan et al., arXiv:2001.08361, plus attention's own matmuls as in
    Chowdhery et al., arXiv:2204.02311). The causal half that a kernel may skip is not deducted: the convention of
    published MFU figures. A block without attention has its own second term (`Block.mixing_flops`). The n_frozen
    parameters that are not trained cost 4 each instead of 6: they have no gradient of their own.
    """
    block = BLOCKS[config.block]
    applied = parameter_count(config) - config.n_layer * block.mixing_parameters(config)
    return 6 * applied - 2 * n_frozen + 3 * config.n_layer * block.mixing_flops(config, n_token)


@dataclass
class Component:
    """One kind of tensor, all layers together. flops: forward, a token; init: standard deviation, or what else."""

    name: str
    parameters: int
    flops: int
    init: str


def components(config: ModelConfig, n_token: int) -> list[Component]:
    """Where parameters and forward FLOPs are, in the order of a forward pass over n_token tokens."""
    model = _on_meta(config)
    residual = {id(weight) for block in model.blocks if isinstance(block, Block) for weight in block.residual_outputs()}
    readers = {id(weight) for weight in channel_readers(model)}
    owned = {
        id(parameter)
        for module in model.modules()
        if hasattr(module, "initialize_own")
        for parameter in module.parameters()
    }
    found: dict[str, Component] = {}

    def add(name: str, parameters: int, flops: int, init: str) -> None:
        row = found.setdefault(name, Component(name, 0, 0, init))
        row.parameters += parameters
        row.flops += flops

    std = config.init_std
    written = std * residual_scale(config, BLOCKS[config.block].residual_additions)
    for path, module in model.named_modules():
        for name, parameter, part in _parts(path, module):
            matrix = part.ndim == 2 and not name.startswith(("embedding", "position", "head"))
            applied = part.numel() if matrix and name.endswith(".weight") and "spatial_gate" not in name else 0
            if "norm" in name:
                init = "1"
            elif id(parameter) in owned:
                init = "its own"
            else:
                wider = config.width_ratio if id(parameter) in readers else 1
                init = f"{(written if id(parameter) in residual else std) / wider**0.5:.3g}"
            add(_component(name), part.numel(), 2 * applied, init)
        if isinstance(module, Block):
            mixing = BLOCKS[config.block].mixing_flops(config, n_token)
            add("mixing of tokens", 0, mixing, "")
    tied = "tied" if config.tie_head else f"{std:.3g}"
    add("head", 0, 2 * config.padded_vocab_size * config.d_model, tied)
    return list(found.values())


def _parts(path: str, module: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """(name in a state dict, parameter, part of it) of a module itself; fused layers taken apart."""
    if isinstance(module, FusedLinear):
        views = module.named_views(f"{path}.")
        whole = {"weight": module.weight, "bias": module.bias}
        return [(name, cast(Tensor, whole[name.rpartition(".")[2]]), view) for name, view in views.items()]
    return [(f"{path}.{kind}".lstrip("."), p, p) for kind, p in module.named_parameters(recurse=False)]


def _component(name: str) -> str:
    """blocks.3.attention.query.weight -> blocks.*.attention.query"""
    module, _, kind = name.rpartition(".")
    return ".".join("*" if part.isdigit() else part for part in module.split(".")) or kind


def cache_bytes_per_token(config: ModelConfig, bytes_per_number: int) -> int:
    """What decoding keeps of every token it has read."""
    kept = BLOCKS[config.block].cached(config).values()
    return config.n_layer * sum(heads * channels for heads, channels in kept) * bytes_per_number


def receptive_fields(config: ModelConfig) -> list[tuple[int, int | None]]:
    """Of each layer: its window (0: all), and how far back its output can depend on tokens (None: all)."""
    reaches: list[tuple[int, int | None]] = []
    reach: int | None = 1
    for layer in range(config.n_layer):
        window = 0 if BLOCKS[config.block].limited else config.window(layer)
        reach = reach + window - 1 if window and reach is not None else None
        reaches.append((window, reach))
    return reaches


def slopes(config: ModelConfig) -> list[float]:
    """ALiBi's, a head each, where a layer uses it; learned ones as they start."""
    return alibi_slopes(config.n_head) if {"alibi", "alibi_learned"} & {*config.schemes} else []


def drawing(config: ModelConfig) -> str:
    """The picture in the block's docstring."""
    text = inspect.getdoc(BLOCKS[config.block]) or ""
    lines = text.splitlines()
    drawn = [i for i, line in enumerate(lines) if set(line) & set("─│┬┴┤├└┘┌┐")]
    return "\n".join(lines[drawn[0] : drawn[-1] + 1]) if drawn else text


def differences(a: ModelConfig, b: ModelConfig) -> dict[str, tuple]:
    """{field: (of a, of b)} where two configurations differ, and where the widths that follow from fields do."""
    followed = ("head_size", "n_key_value", "d_attention", "d_feedforward", "padded_vocab_size")
    left, right = ({**asdict(c), **{name: getattr(c, name) for name in followed}} for c in (a, b))
    left["longest"], right["longest"] = longest(a), longest(b)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def _on_meta(config: ModelConfig) -> GPT:
    with on_meta():
        return GPT(config)
