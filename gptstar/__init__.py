"""GPT*: does this architecture idea make a small GPT train faster or better?

The names below are loaded on first use, so that `import gptstar` and command lines start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptstar.generation.generate import generate as generate
    from gptstar.generation.generate import generate_detailed as generate_detailed
    from gptstar.generation.generate import generate_stream as generate_stream
    from gptstar.generation.settings import SamplingSettings as SamplingSettings
    from gptstar.model.config import ModelConfig as ModelConfig
    from gptstar.model.transformer import GPT as GPT
    from gptstar.pretrained.export import export as export
    from gptstar.pretrained.load import load as load

__version__ = "0.1.0"

_HOME = {
    "GPT": "gptstar.model.transformer",
    "ModelConfig": "gptstar.model.config",
    "load": "gptstar.pretrained.load",
    "export": "gptstar.pretrained.export",
    "generate": "gptstar.generation.generate",
    "generate_detailed": "gptstar.generation.generate",
    "generate_stream": "gptstar.generation.generate",
    "SamplingSettings": "gptstar.generation.settings",
}
__all__ = [
    "GPT",
    "ModelConfig",
    "SamplingSettings",
    "export",
    "generate",
    "generate_detailed",
    "generate_stream",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gptstar' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
