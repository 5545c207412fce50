"""What the lab knows of a run, wherever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Validation:
    """A validation during the run, on part of the held-out text.

    tokens   that were trained on until then; seconds: training time until then, without validations and pauses, or
             None where the source does not say
    loss     nats a token; bits_per_byte: None where the source does not say
    """

    step: int
    tokens: int
    seconds: float | None
    loss: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class HeldOut:
    """The text that validations read, of all corpora together.

    digest   of its tokens: equal only for the same text and tokenizer
    length   tokens of the windows it is read in
    """

    digest: str
    tokens: int
    documents: int
    bytes: int
    length: int

    def same_text(self, other: HeldOut) -> bool:
        """Whether it is the same text, be the tokenizer what it may."""
        return self.digest == other.digest or (self.bytes, self.documents) == (other.bytes, other.documents)


@dataclass(frozen=True)
class Run:
    """One training run, finished or not.

    source         the folder or file it was read from
    config         its configuration, nested as in config.yaml; seed: trainer.seed
    variant        the name a study has given to what it tries; None: to be told from its configuration
    budget         tokens it was to train on
    steps, tokens, losses   of every step: step number, tokens so far, training loss in nats a token
    seconds        of training until each step; None where the source does not say
    validations    in order
    final_loss, final_bits_per_byte   on all of the held-out text, at the end; None before it
    parameters     trainable ones, the tied head once; flops_per_token: of forward and backward
    tokens_per_second, mfu, memory_gib   medians over its steps (memory: the largest), as the run itself saw them
    tokenizer      fingerprint; held_out: the text it was validated on; None where the source does not say
    hardware, commit, command   what it ran on and how it was started
    problem        why it cannot be compared, in words; None: it can
    """

    source: str
    name: str
    config: dict
    seed: int | None = None
    variant: str | None = None
    budget: int | None = None
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: np.ndarray | None = None
    validations: list[Validation] = field(default_factory=list)
    final_loss: float | None = None
    final_bits_per_byte: float | None = None
    parameters: int | None = None
    flops_per_token: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory_gib: float | None = None
    tokenizer: str | None = None
    held_out: HeldOut | None = None
    hardware: str | None = None
    commit: str | None = None
    command: str | None = None
    problem: str | None = None

    @property
    def diverged(self) -> bool:
        """Whether it ended because its loss was infinite or not a number."""
        return self.final_loss is None and len(self.losses) > 0 and not np.isfinite(self.losses[-1])
