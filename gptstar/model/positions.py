"""Where a token stands: one small object a scheme. Attention asks it and knows no names.

A scheme may add to the embedding (`embed`), turn queries and keys (`turning`) or bias the attention scores: linearly
with the distance (`slopes`) or in any other way (`score_bias`); the base class does none of it. A new scheme is a
class here and an entry in `SCHEMES`; its key there is its name in configurations.

Positions arrive as int64 tensors, (T,) where all rows of a batch stand alike, (B, T) where they differ (left padding,
or rows of a cache that are not equally long); a padding token's own position is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.model.config import ModelConfig


class NoPosition(nn.Module):
    """Order only through the causal mask (Haviv et al., arXiv:2203.16634)."""

    limited = False  # whether no position beyond `context` exists
    bias_kind = "none"  # how scores are biased, for kernels that need no dense bias: none, linear (`slopes`) or table

    def __init_subclass__(cls) -> None:
        if cls.score_bias is not NoPosition.score_bias:
            cls.bias_kind = "table"
        elif cls.slopes is not NoPosition.slopes:
            cls.bias_kind = "linear"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def embed(self, x_BTC: Tensor, position: Tensor) -> Tensor:
        """The embeddings with what this scheme adds to them."""
        return x_BTC

    def turning(self, position: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """What turns the queries and keys (B, H, T, D) of these positions before they are compared, or None."""
        return None

    def slopes(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """How much the scaled scores fall with each position of distance, (H,), or None."""
        return None

    def score_bias(self, slot: Tensor, key_S: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What to add to the scaled scores of S keys, (H, T, S) or (B, H, T, S), or None; here it follows from slopes.

        slot, key_S: where the queries, (T,) or (B, T), and the keys stand, left padding counted. The causal mask is not
        in the bias.
        """
        # In fp32 even for a bf16 model, whose numbers cannot tell positions beyond 256 apart.
        slopes_H = self.slopes(slot.device, torch.promote_types(dtype, torch.float32))
        return None if slopes_H is None else (slopes_H[:, None, None] * _distance(slot, key_S)).to(dtype)


class LearnedPosition(NoPosition):
    """GPT-2's trained table of one vector a position; nothing exists beyond its last row."""

    limited = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.context, config.d_model))

    def embed(self, x_BTC: Tensor, position: Tensor) -> Tensor:
        return x_BTC + F.embedding(position, self.weight)


class SinusoidalPosition(NoPosition):
    """Fixed waves, sines in the first half of the channels, cosines in the second (Vaswani et al., arXiv:1706.03762).

    Scaled by init_std * sqrt(2), so that they are as large as the embeddings they are added to.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.width, self.scale = config.d_model, config.init_std * math.sqrt(2)

    def embed(self, x_BTC: Tensor, position: Tensor) -> Tensor:
        angle = _angles(position, (self.width + 1) // 2, 10_000.0, x_BTC.dtype)
        waves = torch.cat((angle.sin(), angle.cos()), -1)[..., : self.width]
        return x_BTC + (self.scale * waves).to(x_BTC.dtype)


class RotaryPosition(NoPosition):
    """Pairs of channels turned by an angle that grows with the position (Su et al., arXiv:2104.09864).

    The first `rotary_fraction` of each head's channels turn (GPT-NeoX: 0.25). Pairs are channel i with i + half
    (half-split: GPT-NeoX, Llama in transformers) or neighbours (interleaved: GPT-J, the paper).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.n_channel = rotary_channels(config)
        self.base, self.interleaved = config.rotary_base, config.rotary_interleaved

    def turning(self, position: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        angle = _angles(position, self.n_channel // 2, self.base, dtype).unsqueeze(-3)  # the same for all heads
        return partial(self._turn, cos=angle.cos().to(dtype), sin=angle.sin().to(dtype))

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = x[..., : self.n_channel], x[..., self.n_channel :]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def rotary_channels(config: ModelConfig) -> int:
    """How many channels of each head rotate: an even number."""
    return int(config.head_size * config.rotary_fraction + 1e-6) // 2 * 2  # 12 * (4 / 12) is 4


def _angles(position: Tensor, n_wave: int, base: float, dtype: torch.dtype) -> Tensor:
    """(..., T, n_wave): position times base^(-i / n_wave), in fp32 even for a bf16 model."""
    exact = torch.promote_types(dtype, torch.float32)
    frequency = base ** (-torch.arange(n_wave, device=position.device, dtype=exact) / n_wave)
    return position.to(exact)[..., None] * frequency


def alibi_slopes(n_head: int) -> list[float]:
    """One slope a head (Press et al., arXiv:2108.12409).

    A power of two H: 2^(-8k/H), k = 1..H. Otherwise the slopes of the next lower power of two P, followed by every
    second slope of 2P, from its first, as many as are missing.
    """
    power = 2 ** math.floor(math.log2(n_head))
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    return slopes + [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * power + 1, 2)][: n_head - power]


def _slopes(n_head: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`alibi_slopes`, made on the device: a CUDA graph takes nothing over from the host."""
    power = 2 ** math.floor(math.log2(n_head))
    whole = torch.arange(1, power + 1, device=device, dtype=dtype) * (-8 / power)
    half = torch.arange(1, 1 + 2 * (n_head - power), 2, device=device, dtype=dtype) * (-4 / power)
    return torch.cat((whole, half)).exp2()


def _distance(slot: Tensor, key_S: Tensor) -> Tensor:
    """(..., 1, T, S) int64: key minus query, at most 0 where the key may be seen; the 1 stands for the heads."""
    return (key_S - slot[..., None]).unsqueeze(-3)


class ALiBi(NoPosition):
    """Scores fall linearly with distance, -slope * (i - j), after the scaling (Press et al., arXiv:2108.12409)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.n_head = config.n_head
        self.heads = slice(None)  # those that attend here; tensor parallelism leaves some to each rank

    def slopes(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return _slopes(self.n_head, device, dtype)[self.heads]


class LearnedALiBi(NoPosition):
    """ALiBi whose slopes are trained, starting from the fixed ones; as logarithms, so that they stay positive."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_slopes = nn.Parameter(torch.empty(config.n_head))

    def initialize_own(self) -> None:
        """Called after the general initialisation."""
        with torch.no_grad():
            self.log_slopes.copy_(torch.tensor(alibi_slopes(len(self.log_slopes))).log())

    def slopes(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.log_slopes.to(dtype).exp()


class RelativeBias(NoPosition):
    """T5's learned bias a head and distance bucket (Raffel et al., arXiv:1910.10683), one table for all layers.

    32 buckets: one a distance up to 15, then logarithmic to 128, and everything beyond in the last.
    """

    n_bucket, exact, furthest = 32, 16, 128

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.bucket_bias = nn.Parameter(torch.empty(self.n_bucket, config.n_head))

    def score_bias(self, slot: Tensor, key_S: Tensor, dtype: torch.dtype) -> Tensor:
        back = -_distance(slot, key_S).squeeze(-3).clamp(max=0)
        share = (back.clamp(min=1) / self.exact).log() / math.log(self.furthest / self.exact)
        far = (self.exact + share * (self.n_bucket - self.exact)).long().clamp(max=self.n_bucket - 1)
        bucket = torch.where(back < self.exact, back, far)
        return self.bucket_bias[bucket].movedim(-1, -3).to(dtype)


SCHEMES: dict[str, type[NoPosition]] = {
    "none": NoPosition,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "rotary": RotaryPosition,
    "alibi": ALiBi,
    "alibi_learned": LearnedALiBi,
    "relative": RelativeBias,
}
