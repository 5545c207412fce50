"""Folders in transformers' layout: config.json, safetensors (one file or shards) or .bin, a tokenizer.

What stands last in `FAMILIES`, our own, holds any architecture: `modeling_gptstar.py` comes with the weights then.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.errors import UserError
from gptstar.model.choices import check_choices
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import Dtype, empty_model, refuse_quantized
from gptstar.pretrained.family import Family
from gptstar.pretrained.gpt2 import GPT2
from gptstar.pretrained.gpt_neo import GPT_NEO
from gptstar.pretrained.gptj import GPTJ
from gptstar.pretrained.llama import LLAMA
from gptstar.pretrained.neox import NEOX
from gptstar.pretrained.star import STAR
from gptstar.pretrained.stored import Stored, open_pickle, open_safetensors, save_safetensors

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, GPT_NEO, GPTJ, NEOX, LLAMA, STAR)}


def load_transformers_folder(
    folder: Path, device: torch.device | str = "cpu", dtype: Dtype = None
) -> tuple[GPT, Tokenizer]:
    """A published or exported model, in evaluation mode, and its tokenizer.

    Raises UserError for what cannot be read or does not fit. No code in the folder is run.
    """
    family, shape = read_family(folder)
    try:
        weights = _open_weights(folder)
        model = empty_model(shape, device, dtype, family.dtype(weights, shape))
        family.fill(model, weights)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return model.eval(), tokenizer_of(folder, family)


def tokenizer_of(folder: Path, family: Family) -> Tokenizer:
    """The folder's."""
    return load_tokenizer(str(folder), _eot_token(folder) or family.eot_token)


def transformers_config(folder: Path) -> ModelConfig:
    """The shape in config.json."""
    return read_family(folder)[1]


def read_family(folder: Path) -> tuple[Family, ModelConfig]:
    """What config.json says: whose layout, and the shape."""
    config = json.loads((folder / "config.json").read_text())
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UserError(
            f"{folder}/config.json: model_type={config.get('model_type')!r} is not supported: {', '.join(FAMILIES)} are"
        )
    try:
        shape = family.read_config(config)
        check_choices(shape)
        return family, shape
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json does not describe a {family.model_type} model: {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def save_transformers_folder(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a model as transformers loads it: beside, then renamed, so that a crash leaves no half folder.

    Raises UserError for a folder in use and where it cannot be written.
    """
    refuse_quantized(model)
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write_folder(model, tokenizer, part)
        os.rename(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {error}") from error


def _write_folder(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    family = family_of(model.config)
    weights = family.export_weights(model.state_dict(), model.config)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    token = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    config = {"model_type": family.model_type, "dtype": dtype, **family.write_config(model.config), **token}
    generation: dict = {**token, "pad_token_id": tokenizer.eot_id}
    untrained = list(range(tokenizer.vocab_size, model.config.vocab_size))
    if untrained:  # embeddings that no token has
        generation["suppress_tokens"] = untrained
    special = dict.fromkeys(("eos_token", "bos_token", "pad_token"), tokenizer.eot_token)
    reading = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **special}
    for name, values in (("config", config), ("generation_config", generation), ("tokenizer_config", reading)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=1))
    for name, text in family.files(model.config).items():
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer.save(folder / "tokenizer.json")
    save_safetensors(weights, folder / "model.safetensors", metadata={"format": "pt"})


def family_of(config: ModelConfig) -> Family:
    """The first family whose configuration can say everything that this one says: our own can."""
    for family in FAMILIES.values():
        try:
            back = family.read_config(family.write_config(config))
        except (KeyError, UserError, ValueError):
            continue
        if _written_out(back) == _written_out(config):
            return family
    raise AssertionError(f"{config} does not survive being written and read")


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
        score_scale=config.attention_scale,
        mup_base_width=config.mup_base_width if config.width_ratio != 1 else 0,
        mup_base_head=0,
        init_std=usual.init_std,
        zero_init_residual=usual.zero_init_residual,
        rotary_fraction=config.rotary_fraction if rotary else usual.rotary_fraction,
        rotary_base=config.rotary_base if rotary else usual.rotary_base,
        rotary_interleaved=config.rotary_interleaved and rotary,
    )


def _eot_token(folder: Path) -> str | None:
    """What the folder's own tokenizer_config.json says ends a text."""
    try:
        token = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
        return token["content"] if isinstance(token, dict) else token
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_weights(folder: Path) -> Stored:
    for name, read in (("model.safetensors", open_safetensors), ("pytorch_model.bin", open_pickle)):
        files = files_of(folder, name)
        if files:
            return {tensor: thunk for file in files for tensor, thunk in read(folder / file).items()}
    raise UserError("no model.safetensors and no pytorch_model.bin")


def files_of(folder: Path, name: str) -> list[str]:
    """The file of this name, or the shards that its index names; none where there is neither."""
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return [name] if (folder / name).is_file() else []
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index.name} is damaged: it has no weight_map") from error
