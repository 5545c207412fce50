"""`gptstar.export`: our models for other people's programs."""

from __future__ import annotations

from pathlib import Path

from gptstar.data.tokenizer import Tokenizer
from gptstar.model.transformer import GPT
from gptstar.pretrained.transformers_folder import save_transformers_folder


def export(model: GPT, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes a folder that transformers loads with its stock classes.

    For architectures of GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Llama; UserError for any other and for a folder in use.
    """
    save_transformers_folder(model, tokenizer, Path(directory).expanduser())
