"""`gptstar.load`: one way to name a model, whoever trained it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.hub import offline_without_network, why_not
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import pick_dtype
from gptstar.pretrained.llama2c import llama2c_config, load_llama2c
from gptstar.pretrained.native import find_checkpoint, load_native, read_config
from gptstar.pretrained.neox_slim import is_neox_slim, load_neox_slim, neox_slim_config
from gptstar.pretrained.star_archive import is_star_archive, load_star_archive, star_archive_config
from gptstar.pretrained.stored import dtype_of_folder
from gptstar.pretrained.transformers_folder import load_transformers_folder, transformers_config

HUB_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
HUB_WEIGHTS = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"])  # the latter if need be
OF_NOBODY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # hub names without an owner


def load(
    source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | str | None = None
) -> tuple[GPT, Tokenizer]:
    """A trained model, in evaluation mode, and its tokenizer.

    source: a run folder (its last checkpoint), RUN/last, RUN/best (lowest validation loss), a checkpoint folder; a
    folder in transformers' layout (GPT-2, GPT-Neo, GPT-J, GPT-NeoX, Pythia, Llama-2, and whatever `gptstar.export`
    wrote), or such a model's hub name; a MODEL.bin of llama2.c; a published GPT* archive (*.pth.tar; `python -m
    gptstar.pretrained.download` fetches them); GPT-NeoX-20B's slim-weights folder (20B_tokenizer.json and
    global_step*/, or the latter alone).
    dtype: of the weights, a torch.dtype or fp32, bf16, fp16; None keeps what was saved. int8 and int4 quantise them, a
    matrix at a time as they are read, and compute in fp32 on a CPU and in bf16 elsewhere.
    Raises UserError for what is none of these or damaged, and for an unknown dtype.
    """
    kept = pick_dtype(dtype)
    layout, path = find_layout(source)
    return layout.load(path, device, kept)


def load_config(source: str | Path) -> ModelConfig:
    """The configuration of what `load` would load, without reading the weights."""
    layout, path = find_layout(source)
    return layout.config(path)


def saved_dtype(source: str | Path) -> torch.dtype:
    """What `load` would keep weights in without a dtype, told without reading them; fp32 where files do not say."""
    layout, path = find_layout(source)
    if layout is NEOX_SLIM:
        return torch.float16
    folder = find_checkpoint(path) if layout is NATIVE else path
    return dtype_of_folder(folder) or torch.float32


@dataclass(frozen=True)
class Layout:
    """A way of keeping a model on disk."""

    config: Callable[[Path], ModelConfig]
    load: Callable[..., tuple[GPT, Tokenizer]]


NATIVE = Layout(lambda path: read_config(find_checkpoint(path)), load_native)
TRANSFORMERS = Layout(transformers_config, load_transformers_folder)
STAR_ARCHIVE = Layout(star_archive_config, load_star_archive)
LLAMA2C = Layout(llama2c_config, load_llama2c)
NEOX_SLIM = Layout(neox_slim_config, load_neox_slim)


def find_layout(source: str | Path) -> tuple[Layout, Path]:
    """How a model is kept, and where; a hub name is fetched first."""
    path = Path(source).expanduser()
    if is_star_archive(path):
        return STAR_ARCHIVE, path
    if path.is_file() and path.suffix == ".bin":
        return LLAMA2C, path
    if _model_type(path):
        return TRANSFORMERS, path
    if is_neox_slim(path):
        return NEOX_SLIM, path
    owned = str(source).count("/") == 1 and not path.parent.is_dir()
    if not path.exists() and (owned or str(source) in OF_NOBODY):
        return TRANSFORMERS, _download(str(source))
    return NATIVE, path


def _model_type(path: Path) -> str | None:
    try:
        values = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return values.get("model_type") if isinstance(values, dict) else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    offline_without_network()
    try:
        for weights in HUB_WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES + weights, ignore_patterns=["*/*"]))
            if any(path for pattern in weights for path in folder.glob(pattern)):
                break
        return folder
    except Exception as error:
        raise UserError(
            f"{name} is neither a folder here (from {Path.cwd()}) nor could it be had from the Hugging Face hub: check "
            f"the path or name ({why_not(error)})"
        ) from error
