"""gMLP and aMLP, causal (Liu et al., "Pay Attention to MLPs", arXiv:2105.08050): tokens mixed by one learned matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptstar.model.adapters import build_adapter
from gptstar.model.attention import Attention, Sight, key_value_cache
from gptstar.model.block import Block, after_sublayer
from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.feedforward import FeedForward
from gptstar.model.norms import build_norm
from gptstar.model.positions import SCHEMES, NoPosition


class SpatialGate(nn.Module):
    """gate[t] = bias[t] + sum over s <= t of weight[t, s] * norm(x)[s], the same for all channels: (B, T, F) -> same.

    Only the lower triangle of `weight` (context, context) is ever read, so its gradient, and with it every optimizer's
    step, leaves the rest at 0. As in GPT*'s experiments the channels are not split in two (the paper gates one half
    with the other).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm = build_norm(config, config.d_feedforward)
        self.weight = nn.Parameter(torch.empty(config.context, config.context))
        self.bias = nn.Parameter(torch.empty(config.context))

    def initialize_own(self) -> None:
        """Near 0 and 1, so that training starts with a plain feed-forward (the paper, section 2.1)."""
        nn.init.normal_(self.weight, 0.0, 1e-6)
        with torch.no_grad():
            self.weight.tril_()
        nn.init.ones_(self.bias)

    def forward(self, x_BTF: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        mixed_BSF = self.norm(x_BTF)
        if cache is not None:
            mixed_BSF = cache.append(self.layer, "gate", mixed_BSF[:, None])[:, 0]
        weight, position = self.weight.tril()[sight.position], sight.position  # (T, context) or (B, T, context)
        if sight.padding_B is None:
            weight = weight[..., : sight.n_key]
        else:  # each row's positions start after its padding, which is not mixed in
            key = torch.arange(sight.n_key, device=weight.device) - sight.padding_B[:, None]
            weight = weight.gather(-1, key.clamp(min=0)[:, None, :].expand(-1, weight.shape[1], -1))
            weight = weight * (key >= 0)[:, None, :]
        return weight.to(mixed_BSF.dtype) @ mixed_BSF + self.bias[position][..., None].to(mixed_BSF.dtype)


class GatedMLPBlock(Block):
    """gMLP: no attention; a feed-forward whose channels are gated by what earlier tokens hold.

    x ──┬── norm ── up ── activation ──┬── gate ──(×)── down ──(+)── y
        │                              └───────────┘            │
        └───────────────────────────────────────────────────────┘
    """

    residual_additions = 1
    limited = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm = build_norm(config, config.d_model)
        self.feedforward = FeedForward(config)
        self.spatial_gate = SpatialGate(config, layer)
        self.adapter = build_adapter(config)
        self.after = after_sublayer(config)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        normed_BTC = self.norm(x_BTC)
        up_BTF = self.feedforward.up(normed_BTC)
        gate_BTF = self.spatial_gate(up_BTF, sight, cache) + self.attend(normed_BTC, sight, cache)
        return x_BTC + self.after(self.adapter(self.feedforward.down(up_BTF * gate_BTF)))

    def attend(self, normed_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor | float:
        """What attention adds to the gate, (B, T, F); nothing here."""
        return 0.0

    def residual_outputs(self) -> list[Tensor]:
        return [self.feedforward.down.weight]

    @staticmethod
    def check(config: ModelConfig) -> None:
        """What only attention would use is refused: nothing would read it."""
        read = [
            name for name, scheme in SCHEMES.items() if scheme is NoPosition or scheme.embed is not NoPosition.embed
        ]
        if unused := {*config.schemes} - {*read}:
            raise ValueError(
                f"model.position={min(unused)!r} has no effect with model.block='gmlp', which has no attention: "
                f"choose one of {', '.join(read)}"
            )
        if config.value_residual:
            raise ValueError(
                "model.value_residual=true has no effect with model.block='gmlp', which has no attention: "
                "set it to false, or choose amlp or a block of attention"
            )

    @staticmethod
    def cached(config: ModelConfig) -> dict[str, tuple[int, int]]:
        return {"gate": (1, config.d_feedforward)}

    @staticmethod
    def mixing_flops(config: ModelConfig, n_token: int) -> int:
        return 2 * config.d_feedforward * n_token

    @staticmethod
    def mixing_parameters(config: ModelConfig) -> int:
        return config.context**2


class AttentiveMLPBlock(GatedMLPBlock):
    """aMLP: gMLP with tiny attention (n_head=1, d_head=64 in the paper) added to the gate.

    x ──┬── norm ──┬── up ── activation ──┬── gate ──(+)──(×)── down ──(+)── y
        │          └── attention ─────────│───────────┘    │            │
        │                                 └────────────────┘            │
        └───────────────────────────────────────────────────────────────┘
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attention = Attention(config, layer, config.d_feedforward)

    def attend(self, normed_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        return self.attention(normed_BTC, sight, cache)

    @staticmethod
    def check(config: ModelConfig) -> None:
        """Every configuration will do."""

    @staticmethod
    def cached(config: ModelConfig) -> dict[str, tuple[int, int]]:
        return {**GatedMLPBlock.cached(config), **key_value_cache(config)}

    @staticmethod
    def mixing_flops(config: ModelConfig, n_token: int) -> int:
        return GatedMLPBlock.mixing_flops(config, n_token) + Block.mixing_flops(config, n_token)
