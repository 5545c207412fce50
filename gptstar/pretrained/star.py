"""Every architecture that no family of transformers has, as transformers runs it with `modeling_gptstar.py`.

Its parameters bear the names they have in memory, where fused layers are one matrix.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta
from gptstar.model.projections import FusedLinear
from gptstar.model.transformer import GPT
from gptstar.pretrained.family import Entry, Family
from gptstar.pretrained.remote_code import ENTRY, remote_code


def _read(c: dict) -> ModelConfig:
    return ModelConfig(**c["model"])


def _write(config: ModelConfig) -> dict:
    return {
        "architectures": ["GPTStarForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{ENTRY}.GPTStarConfig",
            "AutoModelForCausalLM": f"{ENTRY}.GPTStarForCausalLM",
        },
        "model": asdict(config),
    }


def _entries(config: ModelConfig) -> list[Entry]:
    with on_meta():
        model = GPT(config)
    entries = []
    for path, module in model.named_modules():
        if isinstance(module, FusedLinear):
            entries += _fused(path, module)
        else:
            names = [name for name, _ in module.named_parameters(prefix=path, recurse=False)]
            entries += [Entry(f"model.{name}", (name,)) for name in names]
    return entries


def _fused(path: str, layer: FusedLinear) -> list[Entry]:
    names = list(layer.named_views(f"{path}."))
    widths, dim = list(layer.parts.values()), layer.dim
    entries = [
        Entry(
            f"model.{path}.weight",
            tuple(names[: len(widths)]),
            lambda t: t.split(widths, dim),
            lambda parts: torch.cat(parts, dim),
        )
    ]
    biases, lengths = tuple(names[len(widths) :]), [layer.parts[name] for name in layer.biased]
    if layer.join == "outputs":
        bias = Entry(f"model.{path}.bias", biases, lambda t: t.split(lengths), torch.cat)
    else:
        bias = Entry(f"model.{path}.bias", biases, lambda t: t.unbind(0), torch.stack)
    return [*entries, bias] if biases else entries


STAR = Family("gptstar", "<|endoftext|>", _read, _write, _entries, prefix="model.", ignored=(), files=remote_code)
