"""Where a row of results comes from: checkpoint, versions, machine."""

from __future__ import annotations

from pathlib import Path

import torch

import gptstar
from gptstar.device import dtype_name
from gptstar.environment import commit, cpu_name
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.model.describe import parameter_count
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import find_checkpoint, find_run, read_json, read_run_config
from gptstar.quantization.quantize import quantization_of


def about(checkpoint: str, model: GPT) -> dict:
    """What is the same for everything that is measured of a model: see `results.py`."""
    folder = native_folder(checkpoint)
    on_cuda = model.device.type == "cuda"
    return {
        "checkpoint": str(folder or checkpoint),
        "model": model.config.name,
        "parameters": parameter_count(model.config),
        "training_tokens": _training_tokens(folder),
        "dtype": quantization_of(model) or dtype_name(model.dtype),
        "device": model.device.type,
        "gptstar": gptstar.__version__,
        "torch": torch.__version__,
        "commit": commit(),
        "hardware": torch.cuda.get_device_name() if on_cuda else f"{cpu_name()}, {torch.get_num_threads()} threads",
    }


def native_folder(checkpoint: str) -> Path | None:
    """The checkpoint folder of ours that is meant, or None for other people's weights."""
    try:
        return find_checkpoint(checkpoint)
    except UserError:
        return None


def evaluation_folder(checkpoint: str) -> Path:
    """Where what is measured of a checkpoint goes: RUN/evaluation, or evaluations/NAME for what is no run."""
    folder = native_folder(checkpoint)
    if folder is not None and folder.parent.name == "checkpoints":
        return folder.parent.parent / "evaluation"
    return Path("evaluations") / Path(checkpoint).expanduser().resolve().name


def trained_length(checkpoint: str, config: ModelConfig) -> int:
    """Tokens a training sequence had: as the run says, otherwise the model's context."""
    try:
        return int(read_run_config(find_run(checkpoint))["trainer"]["sequence_length"] or config.context)
    except (UserError, KeyError, TypeError):
        return config.context


def _training_tokens(folder: Path | None) -> int | None:
    try:
        return read_json(folder)["training"].get("tokens") if folder else None
    except UserError:  # a transformers folder
        return None
