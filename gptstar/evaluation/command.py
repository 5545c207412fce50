"""What `evaluate.py` does: a checkpoint's loss on the held-out text of the run it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptstar.data.corpora import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.device import pick_device, pick_precision
from gptstar.evaluation.held_out import HeldOutLoss, held_out_loss
from gptstar.pretrained.native import find_checkpoint, load, read_run_config


@dataclass
class EvaluateConfig:
    """checkpoint: a run folder, RUN/best, or one of its checkpoints. context: tokens a window; null: as in training."""

    checkpoint: str = "???"  # must be given
    context: int | None = None
    batch: int = 8
    device: str = "auto"
    precision: str = "auto"


def evaluate(config: EvaluateConfig) -> HeldOutLoss:
    """Nats a token and bits a byte over the whole validation split. Raises UserError for what cannot be read."""
    folder = find_checkpoint(config.checkpoint)
    run = read_run_config(folder.parent.parent)
    device = pick_device(config.device)
    corpus = prepare(DataConfig(**run["data"]), TokenizerConfig(**run["tokenizer"]))
    model, _ = load(folder, device)
    length = config.context or run["trainer"]["sequence_length"] or model.config.context
    precision = pick_precision(config.precision, torch.device(device))
    return held_out_loss(model, corpus.validation, length, config.batch, device, precision)
