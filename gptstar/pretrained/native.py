"""Our own checkpoint folder, the "weights only" kind:

    ideas/               files of one's own that the model is made of (`gptstar.ideas`)
    config.json          the model's configuration, the end-of-text token, where in training it was taken
    model.safetensors    weights, under the names of `GPT.state_dict()` (fused layers under separate names)
    tokenizer.json

A training run keeps such folders in RUN/checkpoints/step-N, each with a training/ folder beside these files
(`gptstar.training.checkpoint`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.errors import UserError, reason
from gptstar.ideas import check_model, keep_with
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import Dtype, empty_model, refuse_quantized
from gptstar.pretrained.family import Entry, fill
from gptstar.pretrained.stored import Stored, in_memory, is_sharded, open_safetensors, save_safetensors

FORMAT = "gptstar-1"
STEP_PREFIX = "step-"


def save_weights(folder: Path, model: GPT, tokenizer: Tokenizer, training: dict) -> None:
    """Writes config.json, model.safetensors and tokenizer.json into an existing folder.

    `training` says where in training the weights were taken: step, tokens, validation_loss. Raises UserError for a
    quantised model.
    """
    refuse_quantized(model)
    save_description(folder, model, tokenizer, training)
    save_tensors(folder, model)


def save_tensors(folder: Path, model: GPT) -> None:
    """model.safetensors."""
    save_safetensors({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def save_description(folder: Path, model: GPT, tokenizer: Tokenizer, training: dict) -> None:
    """What goes with the weights: config.json, tokenizer.json and ideas/."""
    config = {
        "format": FORMAT,
        "model": asdict(model.config),
        "eot_token": tokenizer.eot_token,
        "training": training,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save(folder / "tokenizer.json")
    keep_with(folder, model.config)


def load_native(source: str | Path, device: torch.device | str = "cpu", dtype: Dtype = None) -> tuple[GPT, Tokenizer]:
    """A model trained here, in evaluation mode, and its tokenizer.

    source: a run folder (its last checkpoint), RUN/last, RUN/best (lowest validation loss), or a checkpoint folder.
    dtype: see `gptstar.load`. Raises UserError for a folder that is none of these or damaged.
    """
    folder = find_checkpoint(source)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    model = empty_model(config, device, dtype, _stored_dtype(folder))
    load_weights(folder, model)
    return model.eval(), tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    return load_tokenizer(str(folder / "tokenizer.json"), eot_token(folder))


def eot_token(folder: Path) -> str:
    """The text of the token that ends one."""
    token = read_json(folder).get("eot_token")
    if not isinstance(token, str):
        raise UserError(f"{folder / 'config.json'} names no eot_token: the checkpoint is damaged, use another one")
    return token


def load_weights(folder: Path, model: GPT) -> None:
    """Fills a model from model.safetensors; UserError for missing, unknown, mis-shaped or not finite tensors."""
    weights = _open(folder)
    try:
        fill(model, [Entry(name, (name,)) for name in model.state_dict()], weights)
    except UserError as error:
        raise UserError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error


def _open(folder: Path) -> Stored:
    if is_sharded(folder):
        return _put_together(folder)
    try:
        return open_safetensors(folder / "model.safetensors")
    except UserError as error:
        raise UserError(f"{folder}: {error}: the checkpoint is damaged, use another one") from error


def _put_together(folder: Path) -> Stored:
    """The weights of a checkpoint in shards."""
    from gptstar.pretrained.sharded import DAMAGE, read_shards  # half a second, which few checkpoints need

    model = empty_model(read_config(folder), "cpu", torch.float32, torch.float32)
    try:
        read_shards(folder, model)
    except DAMAGE as error:
        raise UserError(f"{folder}: {reason(error)}: the checkpoint is damaged, use another one") from error
    return in_memory(model.state_dict())


def _stored_dtype(folder: Path) -> torch.dtype:
    if is_sharded(folder):
        return torch.float32
    read = _open(folder).get("embedding.weight")
    return torch.float32 if read is None else read().dtype


def find_checkpoint(source: str | Path) -> Path:
    """The checkpoint folder that `source` names (see `load_native`)."""
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return path
    run, which = (path.parent, path.name) if path.name in ("last", "best") and not path.exists() else (path, "last")
    steps = list_checkpoints(run)
    if steps:
        return best_checkpoint(steps) if which == "best" else steps[-1]
    if (run / "checkpoints").is_dir() or (run / "config.yaml").is_file():
        raise UserError(f"{source} has no checkpoint yet: train it on with train.py resume={run}")
    if path.exists():
        raise UserError(
            f"{source} is neither a run nor a checkpoint folder: name a folder with config.yaml or config.json"
        )
    raise UserError(f"{source}: no such run or checkpoint folder (from {Path.cwd()}): check the path")


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    named = [p for p in (run / "checkpoints").glob(f"{STEP_PREFIX}*") if re.fullmatch(rf"{STEP_PREFIX}\d+", p.name)]
    folders = [p for p in named if (p / "config.json").is_file()]
    return sorted(folders, key=lambda p: int(p.name.removeprefix(STEP_PREFIX)))


def best_checkpoint(folders: list[Path]) -> Path:
    """The one with the lowest validation loss; the newest where none was validated."""

    def loss(folder: Path) -> float:
        value = read_json(folder)["training"].get("validation_loss")
        return value if value is not None and math.isfinite(value) else math.inf

    return min(reversed(folders), key=loss)


def read_json(folder: Path) -> dict:
    """config.json, checked for its format."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the checkpoint is damaged, use another one") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is not a {FORMAT} checkpoint's: check the path")
    return values


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder."""
    try:
        config = ModelConfig(**read_json(folder)["model"])
        check_model(config, folder)
        return config
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'} holds no valid model configuration: {error}") from error


def read_run_config(run: Path) -> dict:
    """The resolved configuration a run was started with, RUN/config.yaml."""
    path = run / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is empty or no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): is {run} a run folder?") from error
    return values


def find_run(source: str | Path) -> Path:
    """The run folder that `source` is or lies in; a run that has no checkpoint yet counts too."""
    path = Path(source).expanduser()
    return path if (path / "config.yaml").is_file() else find_checkpoint(source).parent.parent
