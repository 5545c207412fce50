"""The named residual topologies: how attention and feed-forward join the residual stream.

A new topology is a class here and an entry in `BLOCKS`. Whatever the class fuses, its state-dict names are
`attention.{query,key,value,output}` and `feedforward.{gate,up,down}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gptstar.model.attention import Attention, AttentionCore, Sight, query_key_value
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import ACTIVATIONS, FeedForward, input_parts
from gptstar.model.norms import build_norm
from gptstar.model.projections import FusedLinear


def after_sublayer(config: ModelConfig) -> nn.Module:
    """The optional norm of a sublayer's output ("sandwich", Ding et al., arXiv:2105.13290)."""
    return build_norm(config.norm, config.d_model, config.norm_eps) if config.sandwich_norm else nn.Identity()


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
        self.norm1 = build_norm(config.norm, config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.after1 = after_sublayer(config)
        self.norm2 = build_norm(config.norm, config.d_model, config.norm_eps)
        self.feedforward = FeedForward(config)
        self.after2 = after_sublayer(config)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        x_BTC = x_BTC + self.after1(self.attention(self.norm1(x_BTC), sight, cache))
        return x_BTC + self.after2(self.feedforward(self.norm2(x_BTC)))

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
        attention = self.after1(self.attention(self.norm1(x_BTC), sight, cache))
        return x_BTC + attention + self.after2(self.feedforward(self.norm2(x_BTC)))


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
        self.norm = build_norm(config.norm, config.d_model, config.norm_eps)
        self.inputs = FusedLinear(reads, config.d_model, bias=biased)
        self.attention = AttentionCore(config, layer)
        self.activation = ACTIVATIONS[config.activation]
        self.outputs = FusedLinear(
            writes, config.d_model, join="inputs", bias=[n for n, b in zip(writes, has_bias, strict=True) if b]
        )
        self.after = after_sublayer(config)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        qkv, up = self.inputs(self.norm(x_BTC)).split(self.widths, -1)
        sublayers = torch.cat((self.attention.attend(qkv, sight, cache), self.activation(up)), -1)
        return x_BTC + self.after(self.outputs(sublayers))

    def residual_outputs(self) -> list[Tensor]:
        return [self.outputs.weight]


BLOCKS: dict[str, type[Block]] = {
    "sequential": SequentialBlock,
    "parallel": ParallelBlock,
    "parallel_shared": SharedParallelBlock,
}
