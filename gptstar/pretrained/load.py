"""`gptstar.load`: one way to name a model, whoever trained it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.pretrained.llama2c import load_llama2c
from gptstar.pretrained.native import load_native
from gptstar.pretrained.star_archive import load_star_archive
from gptstar.pretrained.transformers_folder import load_transformers_folder

HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "vocab.json", "merges.txt"]
HUB_FILES += ["tokenizer_config.json"]


def load(
    source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[GPT, Tokenizer]:
    """A trained model, in evaluation mode, and its tokenizer.

    source: a run folder (its last checkpoint), RUN/last, RUN/best (lowest validation loss), a checkpoint folder; a
    folder in transformers' layout (GPT-2, GPT-Neo, GPT-J, GPT-NeoX, Pythia, Llama-2, and whatever `gptstar.export`
    wrote), or such a model's hub name; a MODEL.bin of llama2.c; a published GPT* archive (*.pth.tar).
    dtype: of the weights; None keeps what was saved. Raises UserError for what is none of these or damaged.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.name.endswith(".pth.tar"):
        return load_star_archive(path, device, dtype)
    if path.is_file() and path.suffix == ".bin":
        return load_llama2c(path, device, dtype)
    if _model_type(path):
        return load_transformers_folder(path, device, dtype)
    if not path.exists() and not path.parent.is_dir() and str(source).count("/") == 1:
        return load_transformers_folder(_download(str(source)), device, dtype)
    return load_native(source, device, dtype)


def _model_type(path: Path) -> str | None:
    try:
        values = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return values.get("model_type") if isinstance(values, dict) else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no local folder and could not be had from the hub: {reason}") from error
