"""What a block is, and the residual topologies: how attention and feed-forward join the residual stream.

A new block is a class and an entry in `BLOCKS` (`choices.py`). Whatever a class fuses, the state-dict names of these
are `attention.{query,key,value,output}` and `feedforward.{gate,up,down}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gptstar.model.adapters import build_adapter
from gptstar.model.attention import Attention, AttentionCore, Sight, key_value_cache, query_key_value
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import FeedForward, activation, input_parts
from gptstar.model.norms import build_norm
from gptstar.model.projections import FusedLinear


def after_sublayer(config: ModelConfig) -> nn.Module:
    """The optional norm of a sublayer's output ("sandwich", Ding et al., arXiv:2105.13290)."""
    return build_norm(config, config.d_model) if config.sandwich_norm else nn.Identity()


class Block(nn.Module, ABC):
    """One layer: (B, T, C) -> (B, T, C). A block is built from the configuration and its own number, from 0."""

    residual_additions: int  # how many times a forward pass adds to the residual stream
    limited = False  # whether it can read no more than `context` tokens

    @staticmethod
    def check(config: ModelConfig) -> None:
        """Raises ValueError for a configuration the block cannot be built from."""

    @staticmethod
    def cached(config: ModelConfig) -> dict[str, tuple[int, int]]:
        """What one layer keeps of every token it has read: {name: (heads, channels)}."""
        return key_value_cache(config)

    @staticmethod
    def mixing_flops(config: ModelConfig, n_token: int) -> int:
        """Forward FLOPs a token and layer that mix tokens: attention's scores and their sum of values.

        The causal half that a kernel may skip is not deducted: the convention of published MFU figures.
        """
        return 4 * config.d_attention * n_token

    @staticmethod
    def mixing_parameters(config: ModelConfig) -> int:
        """Parameters of one layer that are not multiplied with every token (`mixing_flops` has what they cost)."""
        return 0

    @abstractmethod
    def residual_outputs(self) -> list[Tensor]:
        """The weights that write into the residual stream (initialised smaller)."""


class SequentialBlock(Block):
    """GPT-2 (Radford et al., 2019): the feed-forward reads what attention wrote.

    x ──┬── norm1 ── attention ──(+)──┬── norm2 ── feedforward ──(+)── y
        └─────────────────────────┘   └───────────────────────────┘
    """

    residual_additions = 2

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = build_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.adapter1 = build_adapter(config)
        self.after1 = after_sublayer(config)
        self.norm2 = build_norm(config, config.d_model)
        self.feedforward = FeedForward(config)
        self.adapter2 = build_adapter(config)
        self.after2 = after_sublayer(config)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        x_BTC = x_BTC + self.after1(self.adapter1(self.attention(self.norm1(x_BTC), sight, cache)))
        return x_BTC + self.after2(self.adapter2(self.feedforward(self.norm2(x_BTC))))

    def residual_outputs(self) -> list[Tensor]:
        return [self.attention.output.weight, self.feedforward.down.weight]


class ParallelBlock(SequentialBlock):
    """GPT-NeoX (Black et al., arXiv:2204.06745): both sublayers read the block's input, each through its own norm.

    x ──┬── norm1 ── attention ─────┐
        ├── norm2 ── feedforward ──(+)── y
        └───────────────────────────┘
    """

    residual_additions = 1

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        attention = self.after1(self.adapter1(self.attention(self.norm1(x_BTC), sight, cache)))
        return x_BTC + attention + self.after2(self.adapter2(self.feedforward(self.norm2(x_BTC))))


class SharedParallelBlock(Block):
    """GPT-J (Wang & Komatsuzaki, 2021) and GPT*: one norm for both, so the layer is two matmuls instead of four.

                ┌── query, key, value ── attention ── output ───┐
    x ──┬─ norm ┤                                              (+)── y
        │       └── up ───────────────── activation ── down ────┤
        └───────────────────────────────────────────────────────┘

    query, key, value and up are one matmul, output and down another.
    """

    residual_additions = 1

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        reads = {f"attention.{name}": width for name, width in query_key_value(config).items()}
        self.widths = (sum(reads.values()), sum(input_parts(config).values()))
        biased = [*reads] if config.query_key_value_bias else []
        reads |= {f"feedforward.{name}": width for name, width in input_parts(config).items()}
        biased += [name for name in reads if name.startswith("feedforward") and config.feedforward_bias]
        writes = {"attention.output": config.d_attention, "feedforward.down": config.d_feedforward}
        has_bias = (config.attention_output_bias, config.feedforward_bias)
        self.norm = build_norm(config, config.d_model)
        self.inputs = FusedLinear(reads, config.d_model, bias=biased)
        self.attention = AttentionCore(config, layer)
        self.activation = activation(config)
        self.outputs = FusedLinear(
            writes, config.d_model, join="inputs", bias=[n for n, b in zip(writes, has_bias, strict=True) if b]
        )
        self.adapter1, self.adapter2 = build_adapter(config), build_adapter(config)
        self.adapted = config.adapter_width > 0
        self.after = after_sublayer(config)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        qkv, up = self.inputs(self.norm(x_BTC)).split(self.widths, -1)
        sublayers = self.attention.attend(qkv, sight, cache), self.activation(up)
        if self.adapted:  # each sublayer's output passes its own adapter, so they cannot be summed by the matmul
            attention, feedforward = self.outputs.apart(sublayers)
            return x_BTC + self.after(self.adapter1(attention) + self.adapter2(feedforward))
        return x_BTC + self.after(self.outputs(torch.cat(sublayers, -1)))

    def residual_outputs(self) -> list[Tensor]:
        return [self.outputs.weight]
