"""Causal self-attention: what the tokens of a forward pass see, and the sublayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from gptstar.model.cache import KeyValueCache
from gptstar.model.config import ModelConfig
from gptstar.model.kernel_choice import KERNELS, pick_kernel
from gptstar.model.kernels import Kernel, View
from gptstar.model.mix import Mix
from gptstar.model.norms import build_norm
from gptstar.model.projections import FusedLinear, Linear


@dataclass(frozen=True)
class Sight:
    """What the tokens of one forward pass see: made once for all layers with the same position and window.

    kernel: attention with the mask and bias in the form it wants.
    turning: what turns queries and keys, (B, H, T, D), or None.
    position: of each token, (T,) or (B, T). slot: where it stands among the S = n_key tokens that there are with those
    read before, left padding counted, the same shape.
    first_value: where model.value_residual wants them, the first layer's values of these tokens, one (B, K, T, D): that
    layer puts them in, the others find them.
    """

    kernel: Kernel
    turning: Callable[[Tensor], Tensor] | None
    position: Tensor
    slot: Tensor
    n_key: int
    padding_B: Tensor | None
    first_value: list[Tensor] = field(default_factory=list)


def make_sight(view: View, choice: str = "auto", for_rows: type[Kernel] | None = None) -> Sight:
    """choice: the kernel, or auto (`pick_kernel`, which also says what it raises).

    for_rows: the kernel for one more token of each row, where it can be used.
    """
    slot, padding_B = view.slot, view.padding_B
    position = slot if padding_B is None else (slot - padding_B[:, None]).clamp(min=0)
    rows = view.case.rows and for_rows is not None and for_rows.obstacle(view.case) is None
    kernel = for_rows if rows and for_rows is not None else KERNELS[pick_kernel(view.case, choice)]
    turning = view.case.scheme.turning(position, view.dtype)
    return Sight(kernel(view), turning, position, slot, view.case.n_key, padding_B)


def key_value_cache(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """What attention keeps of every token it has read: {name: (heads, channels)}."""
    return dict.fromkeys(("key", "value"), (config.n_key_value, config.head_size))


def query_key_value(config: ModelConfig) -> dict[str, int]:
    """The matrices that read the sublayer's input, and their widths."""
    shared = config.n_key_value * config.head_size
    return {"query": config.d_attention, "key": shared, "value": shared}


class AttentionCore(nn.Module):
    """Attention without its projections: heads, positions and cache. Blocks that fuse projections use it bare."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size = layer, config.head_size
        self.widths = list(query_key_value(config).values())
        # QK-norm (Henry et al., arXiv:2010.04245): each head's queries and keys normalised before they are compared.
        self.query_norm = build_norm(config, config.head_size) if config.qk_norm else None
        self.key_norm = build_norm(config, config.head_size) if config.qk_norm else None
        # The plain form of the paper (half and half) to start with, then its learned one, a pair of numbers a layer.
        self.value_mix = Mix(0.5, 0.5) if config.value_residual and layer else None
        self.gives_value = config.value_residual and not layer

    def attend(self, qkv: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """(B, T, (H + 2K) * D), queries then keys then values, -> (B, T, H * D)."""
        B, T, _ = qkv.shape
        q, k, v = (x.view(B, T, -1, self.head_size).transpose(1, 2) for x in qkv.split(self.widths, -1))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if sight.turning is not None:
            q, k = sight.turning(q), sight.turning(k)
        if self.value_mix is not None:
            v = self.value_mix(v, sight.first_value[0])
        elif self.gives_value:
            sight.first_value.append(v)
        if cache is not None:
            k, v = cache.append(self.layer, "key", k), cache.append(self.layer, "value", v)
        y_BHTD = sight.kernel(q, k, v)
        return y_BHTD.transpose(1, 2).reshape(B, T, -1)


class Attention(AttentionCore):
    """Query, key and value as one matmul, attention, output projection: (B, T, C) -> (B, T, d_out), by default C."""

    def __init__(self, config: ModelConfig, layer: int, d_out: int | None = None) -> None:
        super().__init__(config, layer)
        self.inputs = FusedLinear(query_key_value(config), config.d_model, bias=config.query_key_value_bias)
        self.output = Linear(config.d_attention, d_out or config.d_model, bias=config.attention_output_bias)

    def forward(self, x_BTC: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        return self.output(self.attend(self.inputs(x_BTC), sight, cache))
