"""`gptstar.export`: our models for other people's programs."""

from __future__ import annotations

from pathlib import Path

from gptstar.data.tokenizer import Tokenizer
from gptstar.model.transformer import GPT
from gptstar.pretrained.transformers_folder import save_transformers_folder


def export(model: GPT, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes a folder that transformers loads; `gptstar.load` reads it back bit for bit.

    GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Llama shapes load in transformers' own classes. Any other architecture brings
    its code along, which needs only torch and transformers: `AutoModelForCausalLM.from_pretrained(directory,
    trust_remote_code=True)`, then `generate` or `pipeline("text-generation")`.
    Raises UserError for a folder in use and where it cannot be written.
    """
    save_transformers_folder(model, tokenizer, Path(directory).expanduser())
