"""Folders in transformers' layout: config.json, safetensors (one file or shards) or .bin, a tokenizer."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.family import Family
from gptstar.pretrained.gpt2 import GPT2
from gptstar.pretrained.gpt_neo import GPT_NEO
from gptstar.pretrained.gptj import GPTJ
from gptstar.pretrained.llama import LLAMA
from gptstar.pretrained.neox import NEOX

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, GPT_NEO, GPTJ, NEOX, LLAMA)}


def load_transformers_folder(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[GPT, Tokenizer]:
    """A published model, in evaluation mode, and its tokenizer. UserError for what cannot be read or does not fit."""
    family, shape = _read_config(folder)
    try:
        weights = family.import_weights(_read_weights(folder), shape)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    with torch.device("meta"):
        model = GPT(shape)
    kept = dtype or next(iter(weights.values())).dtype
    model = model.to(dtype=kept).to_empty(device=device)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder}: weights do not fit config.json: {' '.join(str(error).split())}") from error
    return model.eval(), load_tokenizer(str(folder), family.eot_token)


def transformers_config(folder: Path) -> ModelConfig:
    """The shape in config.json."""
    return _read_config(folder)[1]


def _read_config(folder: Path) -> tuple[Family, ModelConfig]:
    config = json.loads((folder / "config.json").read_text())
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise UserError(
            f"{folder}/config.json: model_type={config.get('model_type')!r} is not supported: {', '.join(FAMILIES)} are"
        )
    try:
        return family, family.read_config(config)
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder}/config.json does not describe a {family.model_type} model: {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def save_transformers_folder(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a model that is of one of the families, so that transformers' own classes load it.

    Creates the folder. Raises UserError for a folder in use, and for an architecture that no family has (GPT* among
    them: ALiBi with a shared norm is in none).
    """
    family = family_of(model.config)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = family.export_weights(model.state_dict(), model.config)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    config = {"model_type": family.model_type, "torch_dtype": dtype, **family.write_config(model.config)}
    config |= {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(folder / "tokenizer.json")
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eot_token}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "bos_token": tokenizer.eot_token}, indent=1))


def family_of(config: ModelConfig) -> Family:
    """The family whose configuration can say everything that this one says."""
    for family in FAMILIES.values():
        try:
            back = family.read_config(family.write_config(config))
        except (KeyError, UserError, ValueError):
            continue
        if _written_out(back) == _written_out(config):
            return family
    raise UserError(f"no family of transformers ({', '.join(FAMILIES)}) has the architecture of model={config.name}")


def _written_out(config: ModelConfig) -> ModelConfig:
    """Without a name, with every derived value explicit, and without settings that its choices do not use."""
    usual = ModelConfig()
    rotary = "rotary" in config.schemes
    return replace(
        config,
        name="",
        d_head=config.head_size,
        d_ff=config.d_feedforward,
        n_kv_head=config.n_key_value,
        windows=[config.window(layer) for layer in range(config.n_layer)],
        layer_positions=config.schemes,
        position="none",
        score_scale=config.score_scale or config.head_size**-0.5,
        init_std=usual.init_std,
        rotary_fraction=config.rotary_fraction if rotary else usual.rotary_fraction,
        rotary_base=config.rotary_base if rotary else usual.rotary_base,
        rotary_interleaved=config.rotary_interleaved and rotary,
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name, read in (("model.safetensors", load_file), ("pytorch_model.bin", _load_pickle)):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        elif (folder / name).is_file():
            files = [name]
        else:
            continue
        weights: dict[str, Tensor] = {}
        for file in files:
            try:
                weights.update(read(folder / file))
            except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise UserError(f"{file} cannot be read ({' '.join(str(error).split())[:200]})") from error
        return weights
    raise UserError("no model.safetensors and no pytorch_model.bin")


def _load_pickle(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)
