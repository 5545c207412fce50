"""metrics.jsonl, one JSON object a line, always; wandb or TensorBoard beside it.

Four kinds of line: a training step (step, tokens, epoch, loss in nats a token, lr, grad_norm, and the timing keys), a
validation on part of the held-out text (validation_loss, bits_per_byte, validation_tokens), tasks of the evaluation
harness (TASK/METRIC, where trainer.eval_tasks names some), and at the end of the run a validation on all of the
held-out text (final_loss, final_bits_per_byte). All but the timing keys are a function of configuration and seed.
"""

from __future__ import annotations

import json
import netrc
import os
import socket
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from gptstar.errors import UserError, reason
from gptstar.files import replace_text
from gptstar.training.config import LoggerConfig

TIMING_KEYS = ("seconds", "tokens_per_second", "mfu", "memory_gib")


class Tracker(Protocol):
    """Where metrics go beside the file."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers of one step."""

    def close(self) -> None:
        """Finishes writing."""


class MetricsLog:
    """Appends to RUN/metrics.jsonl and to a tracker."""

    def __init__(self, run: Path, step: int, tracker: Tracker | None) -> None:
        """`step` is where the run continues: what it will write again (later steps, the end) is dropped."""
        self.path = run / "metrics.jsonl"
        self.tracker = tracker
        kept = [line for line in read_metrics(self.path) if line["step"] <= step and "final_loss" not in line]
        replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")

    def write(self, lines: list[dict]) -> None:
        """Each a dict with at least "step"."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        if self.tracker is not None:
            for line in lines:
                self.tracker.log({k: v for k, v in line.items() if v is not None}, line["step"])

    def close(self) -> None:
        """Closes the file and the tracker."""
        self._file.close()
        if self.tracker is not None:
            self.tracker.close()


def read_metrics(path: Path) -> list[dict]:
    """All complete lines; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline is not complete


def check_tracker(config: LoggerConfig) -> None:
    """Raises UserError where the package that `logger.name` needs is missing."""
    if config.name == "tensorboard" and find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard needs the tensorboard package: pip install 'gptstar[tensorboard]'")


def open_tracker(config: LoggerConfig, run: Path, run_config: dict, step: int) -> Tracker | None:
    """The tracker of `logger.name`, continuing the run's earlier one. UserError where it cannot start."""
    if config.name == "wandb":
        return _Wandb(config, run, run_config)
    if config.name == "tensorboard":
        return _TensorBoard(run, step)
    return None


class _Wandb:
    def __init__(self, config: LoggerConfig, run: Path, run_config: dict) -> None:
        import wandb

        id_file = run / "wandb_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:8])
        mode = _wandb_mode() if config.mode == "auto" else config.mode
        try:
            self.run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                name=run.name,
                id=id_file.read_text().strip(),
                dir=str(run),
                resume="allow" if mode == "online" else None,
                config=run_config,
                mode="online" if mode == "online" else "offline",
            )
        except wandb.Error as error:
            raise UserError(f"logger=wandb could not start ({reason(error)}): try logger.mode=offline") from error

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _wandb_mode() -> str:
    """WANDB_MODE where it is set; else online if a key is known and the server answers within two seconds."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = address.hostname or ""
    try:
        known = bool(os.environ.get("WANDB_API_KEY")) or netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        return "offline"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=2).close()
        return "online"
    except OSError:
        return "offline"


class _TensorBoard:
    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        for key, value in values.items():
            if key != "step":
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()
