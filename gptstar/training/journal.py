"""What a run leaves in writing while it goes: metrics.jsonl and a tracker, train.log and the console. Rank 0 writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from gptstar.evaluation.held_out import HeldOutLoss
from gptstar.training.config import TrainConfig
from gptstar.training.display import Display
from gptstar.training.metrics import MetricsLog, open_tracker, read_metrics
from gptstar.training.plot import draw_loss_curve
from gptstar.training.state import TrainState


class Journal:
    """Of one run, from the step where it goes on. writing: whether this rank writes; the others are silent."""

    def __init__(self, run: Path, config: TrainConfig, state: TrainState, console: Console, writing: bool) -> None:
        self.run, self.state = run, state
        self.display = Display(console if writing else Console(quiet=True), run / "train.log" if writing else None)
        self._log = None
        if writing:
            told = {**asdict(config), **_facts(run)}
            self._log = MetricsLog(run, state.step, open_tracker(config.logger, run, told, state.step))

    def note(self, text: str) -> None:
        """One thing worth keeping."""
        self.display.note(text)

    def lines(self) -> list[dict]:
        """What metrics.jsonl holds."""
        return read_metrics(self.run / "metrics.jsonl")

    def write(self, values: dict) -> None:
        """A line of metrics.jsonl at the current step."""
        if self._log is not None:
            self._log.write([{"step": self.state.step, "tokens": self.state.tokens, **values}])

    def step(self, loss: float, lr: float, norm: float, seen: dict[str, float], seconds: float, speed: dict) -> None:
        """An optimizer step. seen: passes over the data; speed: the timing keys beside `seconds`."""
        self.write(
            {
                **{key: round(value, 6) for key, value in seen.items()},
                "loss": loss if math.isfinite(loss) else None,
                "lr": lr,
                "grad_norm": norm if math.isfinite(norm) else None,
                "seconds": round(seconds, 6),
                **speed,
            }
        )
        self.display.step(self.state.step, loss, seconds, speed["tokens_per_second"], speed["mfu"])

    def validation(self, found: HeldOutLoss, each: dict[str, HeldOutLoss]) -> None:
        """A validation on part of the held-out text; each: that of each corpus."""
        self.write(
            {
                "validation_loss": found.loss,
                "bits_per_byte": found.bits_per_byte,
                "validation_tokens": found.tokens,
                **_by_corpus("validation_loss", each),
            }
        )
        per_byte = f"{found.bits_per_byte:.4f} bits/byte{_told(each)}"
        self.note(f"step {self.state.step}: held-out loss {found.loss:.4f} nats/token, {per_byte}")

    def end(self, found: HeldOutLoss, each: dict[str, HeldOutLoss], title: str) -> None:
        """The validation on all of it, and the curve."""
        self.write(
            {
                "final_loss": found.loss,
                "final_bits_per_byte": found.bits_per_byte,
                "validation_tokens": found.tokens,
                **_by_corpus("final_loss", each),
            }
        )
        if self._log is not None:
            draw_loss_curve(self._log.path, self.run / "loss.png", title)
        per_byte = f"{found.bits_per_byte:.4f} bits/byte{_told(each)}"
        self.note(f"\n{found.loss:.4f} nats/token, {per_byte} on all held-out text ({self.run}/loss.png)")

    def running(self, total: int) -> AbstractContextManager[None]:
        """Shows progress towards `total` steps while entered."""
        return self.display.running(self.state.step, total)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Closes everything afterwards."""
        try:
            yield
        finally:
            if self._log is not None:
                self._log.close()
            self.display.close()


def _facts(run: Path) -> dict:
    """facts.json, so that a tracker's copy of a run says too what it can be compared with."""
    path = run / "facts.json"
    return {"facts": json.loads(path.read_text())} if path.is_file() else {}


def _by_corpus(key: str, each: dict[str, HeldOutLoss]) -> dict[str, float]:
    return {f"{key}/{name}": found.loss for name, found in each.items()} if len(each) > 1 else {}


def _told(each: dict[str, HeldOutLoss]) -> str:
    return "".join(f"; {name} {found.loss:.4f}" for name, found in each.items()) if len(each) > 1 else ""
