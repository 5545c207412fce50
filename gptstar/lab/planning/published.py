"""What training took others, as far as they said: what the planner is held against (the table in docs/lab/plan.md)."""

from __future__ import annotations

from dataclasses import dataclass

from gptstar.model.config import ModelConfig
from gptstar.training.config import TrainConfig, TrainerConfig

RECIPE = 51_000 * 1024 * 512  # tokens of both published GPT*


@dataclass(frozen=True)
class Published:
    """A run in fp16: its preset, its file of configs/hardware, tokens, sequences a step and at a time, their length.

    device_hours: what it took, of all devices. Microbatches are assumed, for they were not published.
    """

    name: str
    model: str
    hardware: str
    tokens: int
    batch_size: int
    microbatch: int
    length: int
    device_hours: float

    def configuration(self, model: ModelConfig, as_they_did: bool = True) -> TrainConfig:
        """model: the preset. as_they_did: uncompiled, with scores written to memory; else as this trainer would."""
        trainer = TrainerConfig(
            batch_size=self.batch_size,
            microbatch=self.microbatch,
            sequence_length=self.length,
            max_tokens=self.tokens,
            precision="fp16",
            compile=False if as_they_did else None,
            attention="dense" if as_they_did else "auto",
        )
        return TrainConfig(model=model, trainer=trainer)

    def implied_mfu(self, flops_per_token: float, peak: float) -> float:
        """The share of a device's peak, FLOP/s, that its hours stand for."""
        return flops_per_token * self.tokens / (self.device_hours * 3600 * peak)


# The hardware of the last is not published: the A5000 of the first is assumed.
PUBLISHED = (
    Published("GPT-127*, 26.7B tokens, 4 x RTX A5000, fp16", "gpt127", "a5000x4", RECIPE, 1024, 32, 512, 248),
    Published("GPT-303*, 26.7B tokens, 4 x RTX 3090, fp16", "gpt303", "3090x4", RECIPE, 1024, 16, 512, 412),
    Published("GPT-2 Small, 21B tokens, RTX A5000 (assumed)", "gpt2_small", "a5000x4", 21 * 10**9, 512, 8, 1024, 240),
)
# Planned hours as they did, of those published: the least and the most.
AGAINST_PUBLISHED = (0.58, 0.97)
