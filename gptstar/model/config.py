"""ModelConfig: every architectural choice, by name, with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """The shape of one GPT. Widths are in channels, lengths in tokens.

    block        how a layer's two sublayers join the residual stream (see `block.py`):
                 sequential       GPT-2: x + attention(norm(x)), then x + feedforward(norm(x))
                 parallel         GPT-NeoX: both sublayers read x, each through its own LayerNorm
                 parallel_shared  GPT-J and GPT*: both read the same LayerNorm; four matmuls become two
    position     alibi (Press et al., arXiv:2108.12409), learned (GPT-2's table of `context` rows) or none
    activation   gelu (exact, erf) or gelu_tanh (GPT-2's "gelu_new")
    n_head, d_head  any pair: n_head * d_head need not equal d_model ("wide heads").
                 d_head=0 means d_model / n_head
    d_ff         feed-forward width; 0 means 4 * d_model
    context      tokens a training sequence has; a hard limit only with learned positions
    tie_head     the output head is the token embedding itself (no bias), counted once
    init_std     standard deviation of all weights at the start (see `initialization.py`)
    """

    name: str = "custom"
    vocab_size: int = 50257
    n_layer: int = 12
    d_model: int = 768
    n_head: int = 12
    d_head: int = 0
    d_ff: int = 0
    context: int = 1024
    block: str = "sequential"
    position: str = "learned"
    activation: str = "gelu"
    tie_head: bool = True
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        # Here, because what the tables hold is built from this configuration.
        from gptstar.model.block import BLOCKS
        from gptstar.model.feedforward import ACTIVATIONS
        from gptstar.model.positions import SCHEMES

        for key, allowed in (("block", BLOCKS), ("position", SCHEMES), ("activation", ACTIVATIONS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"model.{key}={getattr(self, key)!r} is unknown: choose one of {', '.join(allowed)}")
        for key in ("vocab_size", "n_layer", "d_model", "n_head", "context"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")
        for key in ("d_head", "d_ff"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1, or 0 for the usual width")
        for key in ("norm_eps", "init_std"):
            if not getattr(self, key) > 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be above 0")
        if not self.d_head and self.d_model % self.n_head:
            raise ValueError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}: "
                "change one of them, or set model.d_head"
            )

    # Fields stay as they were given, so that a changed d_model changes the widths that follow from it.

    @property
    def head_size(self) -> int:
        """Channels a head."""
        return self.d_head or self.d_model // self.n_head

    @property
    def d_attention(self) -> int:
        """Width of all heads side by side."""
        return self.n_head * self.head_size

    @property
    def d_feedforward(self) -> int:
        """Width between the feed-forward's two matrices."""
        return self.d_ff or 4 * self.d_model
