"""Whether the names in a configuration are in the tables of the architecture."""

from __future__ import annotations

from collections.abc import Collection

from gptstar.model.block import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import ACTIVATIONS
from gptstar.model.norms import NORMS
from gptstar.model.positions import SCHEMES


def check_choices(config: ModelConfig) -> None:
    """Raises ValueError for an unknown block, norm, activation or position, with the known ones."""
    _known("block", config.block, BLOCKS)
    _known("norm", config.norm, NORMS)
    _known("activation", config.activation, ACTIVATIONS)
    _known("position", config.position, SCHEMES)
    for scheme in config.layer_positions:
        _known("layer_positions", scheme, SCHEMES)


def _known(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"model.{key}={value!r} is unknown: choose one of {', '.join(allowed)}")
