"""The named residual topologies: how attention and feed-forward join the residual stream.

A new topology is a class here and an entry in `BLOCKS`. Whatever the class fuses, its state-dict names are
`attention.{query,key,value,output}` and `feedforward.{up,down}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gptstar.model.attention import Attention, AttentionCore
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import ACTIVATIONS, FeedForward
from gptstar.model.projections import FusedLinear


class Block(nn.Module, ABC):
    """One layer: (B, T, C) -> (B, T, C). A block is built from the configuration and its own number, from 0."""

    residual_additions: int  # how many times a forward pass adds to the residual stream

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
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.feedforward = FeedForward(config)

    def forward(self, x_BTC: Tensor, bias_HTS: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC), bias_HTS, cache)
        return x_BTC + self.feedforward(self.norm2(x_BTC))

    def residual_outputs(self) -> list[Tensor]:
        return [self.attention.output.weight, self.feedforward.down.weight]


class ParallelBlock(SequentialBlock):
    """GPT-NeoX (Black et al., arXiv:2204.06745): both sublayers read the block's input, each through its own norm.

    x ──┬── norm1 ── attention ─────┐
        ├── norm2 ── feedforward ──(+)── y
        └───────────────────────────┘
    """

    residual_additions = 1

    def forward(self, x_BTC: Tensor, bias_HTS: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        return x_BTC + self.attention(self.norm1(x_BTC), bias_HTS, cache) + self.feedforward(self.norm2(x_BTC))


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
        width = config.d_attention
        self.widths = (3 * width, config.d_feedforward)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.inputs = FusedLinear(
            {
                "attention.query": width,
                "attention.key": width,
                "attention.value": width,
                "feedforward.up": config.d_feedforward,
            },
            config.d_model,
        )
        self.core = AttentionCore(config, layer)
        self.activation = ACTIVATIONS[config.activation]
        self.outputs = FusedLinear(
            {"attention.output": width, "feedforward.down": config.d_feedforward}, config.d_model, join="inputs"
        )

    def forward(self, x_BTC: Tensor, bias_HTS: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        qkv, up = self.inputs(self.norm(x_BTC)).split(self.widths, -1)
        return x_BTC + self.outputs(torch.cat((self.core(qkv, bias_HTS, cache), self.activation(up)), -1))

    def residual_outputs(self) -> list[Tensor]:
        return [self.outputs.weight]


BLOCKS: dict[str, type[Block]] = {
    "sequential": SequentialBlock,
    "parallel": ParallelBlock,
    "parallel_shared": SharedParallelBlock,
}
