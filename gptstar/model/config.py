"""ModelConfig: every architectural choice, by name, with its unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """The shape of one GPT. Widths are in channels, lengths in tokens; 0 stands for "the usual" or "off".

    Impossible numbers are refused here; unknown names (block, norm, position, activation) when a GPT is built, by
    `choices.py`, because the tables that hold them are made of code that needs this class.

    name         what the model is called in logs and reports
    vocab_size   tokens the tokenizer has; n_layer  layers; d_model  channels of the residual stream

    Stream
    block        how a layer's two sublayers join the residual stream (see `block.py`):
                 sequential       GPT-2: x + attention(norm(x)), then x + feedforward(norm(x))
                 parallel         GPT-NeoX: both sublayers read x, each through its own norm
                 parallel_shared  GPT-J and GPT*: both read the same norm; four matmuls become two
                 gmlp, amlp       no attention, or one tiny head of it: a matrix mixes tokens (`gmlp.py`)
    norm         layernorm, layernorm_nobias or rmsnorm (`norms.py`), everywhere
    norm_eps     what norms add to the variance (rmsnorm: mean square) before its root is taken
    sandwich_norm  one more norm after each sublayer; embedding_norm  one after the embedding (BLOOM)
    embedding_shortcut  from the second layer on, a layer reads a * x + b * (what the first one read), a and b learned,
                 1 and 0 at the start (Jordan et al., modded-nanogpt, https://github.com/KellerJordan/modded-nanogpt)
    zero_init_residual  matrices that write into the stream start at 0, so the model starts as its embedding and head
                 (Zhang et al., "Fixup", arXiv:1901.09321)
    context      tokens a training sequence has; a hard limit with learned positions and in gmlp, amlp
    adapter_width  bottleneck adapters of so many channels on every sublayer's output (`adapters.py`); 0: none
    init_std     standard deviation of all weights at the start (`initialization.py`)

    Positions (`positions.py`)
    position     none, learned (GPT-2's table of `context` rows), sinusoidal, rotary, alibi, alibi_learned (trained
                 slopes) or relative (T5)
    layer_positions  one scheme a layer, repeated from its start where it is shorter; empty: `position` in all
    rotary_fraction, rotary_base, rotary_interleaved  share of a head's channels that turn, base, pairing

    Attention (`attention.py`)
    n_head, d_head  any pair: n_head * d_head need not equal d_model ("wide heads"). d_head=0 means d_model / n_head
    n_kv_head    key/value heads, each shared by n_head / n_kv_head query heads (Ainslie et al., arXiv:2305.13245);
                 1 is multi-query, 0 means n_head
    windows      one a layer, repeated from its start: how many positions a query sees, itself included; 0: all;
                 [0, 256] is GPT-Neo's alternation
    qk_norm      each head's queries and keys are normalised
    value_residual  from the second layer on, values are a * own + b * the first layer's of the same token, a and b
                 learned, 1/2 each at the start (Zhou et al., "Value Residual Learning", arXiv:2410.17897)
    score_scale  what scores are multiplied by; 0: 1/sqrt(d_head). GPT-Neo: 1
    score_softcap  scores become cap * tanh(scores / cap) (Gemma 2, arXiv:2408.00118)
    query_key_value_bias, attention_output_bias  whether those layers have a bias

    Feed-forward (`feedforward.py`)
    activation   gelu (exact), gelu_tanh (GPT-2's "gelu_new"), relu, relu_squared, swiglu or geglu
    d_ff         width; 0 means 4 * d_model
    feedforward_bias  whether both layers have a bias

    Head
    tie_head     the output head is the token embedding itself, counted once
    head_bias    whether it has a bias; logit_softcap  logits become cap * tanh(logits / cap)
    pad_vocab_to the embedding's rows are rounded up to a multiple, for speed; the extra tokens have probability 0

    Transfer across width (`mup.py`)
    mup_base_width  d_model of the model that learning rates were found on, at which muP changes nothing; 0: no muP
    mup_base_head   its d_head, where heads grow with the width; 0: as here, there are more of them in a wider model

    own          settings that a block or position of one's own brings (`own.py`, docs/your_first_idea.md)
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
    norm: str = "layernorm"
    sandwich_norm: bool = False
    embedding_norm: bool = False
    embedding_shortcut: bool = False
    zero_init_residual: bool = False
    adapter_width: int = 0
    layer_positions: list[str] = field(default_factory=list)
    rotary_fraction: float = 1.0
    rotary_base: float = 10_000.0
    rotary_interleaved: bool = False
    n_kv_head: int = 0
    windows: list[int] = field(default_factory=list)
    qk_norm: bool = False
    value_residual: bool = False
    score_scale: float = 0.0
    score_softcap: float = 0.0
    query_key_value_bias: bool = True
    attention_output_bias: bool = True
    feedforward_bias: bool = True
    head_bias: bool = False
    logit_softcap: float = 0.0
    pad_vocab_to: int = 1
    mup_base_width: int = 0
    mup_base_head: int = 0
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("vocab_size", "n_layer", "d_model", "n_head", "context", "pad_vocab_to"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")
        natural = ("d_head", "d_ff", "n_kv_head", "adapter_width", "mup_base_width", "mup_base_head")
        for key in (*natural, "score_scale", "score_softcap", "logit_softcap"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be above 0, or 0 for the usual")
        for key in ("norm_eps", "init_std", "rotary_base"):
            if not getattr(self, key) > 0:
                raise ValueError(f"model.{key}={getattr(self, key)} must be above 0")
        if self.mup_base_head and not self.mup_base_width:
            raise ValueError(
                f"model.mup_base_head={self.mup_base_head} is part of muP, which is off: set model.mup_base_width too"
            )
        if self.mup_base_head and self.score_scale:
            raise ValueError(
                f"model.mup_base_head={self.mup_base_head} and model.score_scale={self.score_scale} both say what "
                "scores are multiplied by: leave one of them at 0"
            )
        if any(window < 0 for window in self.windows):
            raise ValueError(f"model.windows={list(self.windows)} must be positive, or 0 for no window")
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"model.rotary_fraction={self.rotary_fraction} must lie in (0, 1]")
        if not self.d_head and self.d_model % self.n_head:
            raise ValueError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}: "
                "change one of them, or set model.d_head"
            )
        if self.n_head % self.n_key_value:
            raise ValueError(
                f"model.n_head={self.n_head} is not a multiple of model.n_kv_head={self.n_kv_head}: change one of them"
            )
        if "rotary" in self.schemes and int(self.head_size * self.rotary_fraction) < 2:
            raise ValueError(
                f"model.rotary_fraction={self.rotary_fraction} of {self.head_size} channels a head leaves no pair to "
                "turn: raise it, or set a larger model.d_head"
            )

    # Fields stay as they were given, so that a changed d_model changes the widths that follow from it.

    @property
    def head_size(self) -> int:
        """Channels a head."""
        return self.d_head or self.d_model // self.n_head

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        usual = self.head_size**-0.5
        return self.score_scale or usual * ((self.mup_base_head or self.head_size) / self.head_size) ** 0.5

    @property
    def width_ratio(self) -> float:
        """How many times wider than the model that muP starts from; 1 without muP."""
        return self.d_model / (self.mup_base_width or self.d_model)

    @property
    def n_key_value(self) -> int:
        """Key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def d_attention(self) -> int:
        """Width of all heads side by side."""
        return self.n_head * self.head_size

    @property
    def d_feedforward(self) -> int:
        """Width between the feed-forward's two matrices."""
        return self.d_ff or 4 * self.d_model

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def schemes(self) -> list[str]:
        """The position scheme of each layer."""
        pattern = self.layer_positions or [self.position]
        return [pattern[layer % len(pattern)] for layer in range(self.n_layer)]

    def window(self, layer: int) -> int:
        """How many positions a layer's queries see; 0: all."""
        return self.windows[layer % len(self.windows)] if self.windows else 0
