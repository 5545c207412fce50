"""What a configuration's names stand for: the table of blocks, and whether all names are known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from gptstar.model.block import Block, ParallelBlock, SequentialBlock, SharedParallelBlock
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import ACTIVATIONS
from gptstar.model.gmlp import AttentiveMLPBlock, GatedMLPBlock
from gptstar.model.norms import NORMS
from gptstar.model.own import completed
from gptstar.model.positions import SCHEMES, NoPosition

BLOCKS: dict[str, type[Block]] = {
    "sequential": SequentialBlock,
    "parallel": ParallelBlock,
    "parallel_shared": SharedParallelBlock,
    "gmlp": GatedMLPBlock,
    "amlp": AttentiveMLPBlock,
}


TABLES: dict[str, dict[str, Any]] = {
    "model.block": BLOCKS,
    "model.position": SCHEMES,
    "model.norm": NORMS,
    "model.activation": ACTIVATIONS,
}


def check_choices(config: ModelConfig) -> None:
    """Raises ValueError for an unknown block, norm, activation, position or setting of theirs, with the known ones."""
    _known("block", config.block, BLOCKS)
    _known("norm", config.norm, NORMS)
    _known("activation", config.activation, ACTIVATIONS)
    _known("position", config.position, SCHEMES)
    for scheme in config.layer_positions:
        _known("layer_positions", scheme, SCHEMES)
    with_own_settings(config)
    _kind("block", config.block, BLOCKS, Block)
    for scheme in config.schemes:
        _kind("position", scheme, SCHEMES, NoPosition)
    BLOCKS[config.block].check(config)


def chosen(config: ModelConfig) -> list[object]:
    """What the names of a configuration stand for."""
    schemes = [SCHEMES[scheme] for scheme in dict.fromkeys(config.schemes)]
    return [BLOCKS[config.block], NORMS[config.norm], ACTIVATIONS[config.activation], *schemes]


def with_own_settings(config: ModelConfig) -> ModelConfig:
    """With the usual value of each setting in `own` that is not given. ValueError for one that there is not."""
    table = (thing for names in TABLES.values() for thing in names.values())
    own = completed(config.own, chosen(config), "model.own", table)
    return config if own == config.own else replace(config, own=own)


def _known(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"model.{key}={value!r} is unknown: choose one of {', '.join(allowed)}, or name the file that adds it "
            "(ideas=[FILE.py])"
        )


def _kind(key: str, value: str, table: dict[str, Any], kind: type) -> None:
    """Raises ValueError for what somebody added and the model cannot use."""
    if not (isinstance(table[value], type) and issubclass(table[value], kind)):
        raise ValueError(
            f"model.{key}={value} is no subclass of {kind.__module__}.{kind.__name__}: derive it from that"
        )


def attends_only(config: ModelConfig) -> bool:
    """Whether attention alone mixes tokens."""
    return [*BLOCKS[config.block].cached(config)] == ["key", "value"]


def longest(config: ModelConfig) -> int | None:
    """The longest sequence a model can read, or None where nothing limits it."""
    limited = BLOCKS[config.block].limited or any(SCHEMES[scheme].limited for scheme in config.schemes)
    return config.context if limited else None


def capacity_of(config: ModelConfig) -> int:
    """The tokens that room is made for in a sequence of unknown length: the longest, or else twice the context."""
    return longest(config) or 2 * config.context
