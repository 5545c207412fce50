"""What `evaluate.py` does: a checkpoint's loss on the held-out text of the run it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from gptstar.data.batches import window_count
from gptstar.data.corpora import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.device import PRECISIONS, pick_device, pick_precision
from gptstar.errors import UserError
from gptstar.evaluation.held_out import HeldOutLoss, held_out_loss
from gptstar.pretrained.native import find_checkpoint, load_native, read_run_config


@dataclass
class EvaluateConfig:
    """checkpoint: a run folder, RUN/best, or one of its checkpoints. context: tokens a window; null: as in training."""

    checkpoint: str = "???"  # must be given
    context: int | None = None
    batch: int = 8
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        for key in ("context", "batch"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")


def evaluate(config: EvaluateConfig) -> HeldOutLoss:
    """Nats a token and bits a byte over the whole validation split. Raises UserError for what cannot be read."""
    folder = find_checkpoint(config.checkpoint)
    run = read_run_config(folder.parent.parent)
    device = pick_device(config.device)
    model, tokenizer = load_native(folder, device)
    length = config.context or run["trainer"]["sequence_length"] or model.config.context
    if model.longest is not None and length > model.longest:
        raise UserError(f"context={length} is beyond the {model.longest} tokens the model can read: lower it")
    settings = TokenizerConfig(**run["tokenizer"])
    given = tokenizer if settings.source == "init_from" else None
    corpus = prepare(DataConfig(**run["data"]), settings, given=given)
    if corpus.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"{folder} was trained with another tokenizer than its run's configuration gives today: "
            "bring back the corpus or tokenizer file it was made from"
        )
    if window_count(len(corpus.validation), length) < 1:
        raise UserError(f"context={length} is longer than the {len(corpus.validation)} held-out tokens: lower it")
    precision = pick_precision(config.precision, device)
    return held_out_loss(model, corpus.validation, length, config.batch, device, precision)
