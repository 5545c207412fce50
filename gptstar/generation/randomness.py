"""Random numbers that are a pure function of (seed, step, token): the same in any batch and on any device.

A counter is hashed (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with SplitMix64's finalizer
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; Stafford's mix 13), all in torch's
wrapping int64 arithmetic, so that no generator object has a state that a batch could disturb and nothing waits for
the device.
"""

from __future__ import annotations

import secrets

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """64 bits as torch's int64 holds them."""
    value &= 2**64 - 1
    return value - 2**64 if value >> 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: successive counters lie far apart
FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
SHIFTS = (30, 27, 31)


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 in place, one to one: every bit of the result depends on every bit of x."""
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        # int64 shifts copy the sign; the mask makes it the shift of an unsigned number.
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    return x


def gumbel_noise(seed_B: Tensor, step_B: Tensor, vocab_size: int) -> Tensor:
    """Independent standard Gumbel numbers, float64 (B, V), from int64 seeds and steps."""
    key_B = mix(mix(seed_B * GAMMA) + step_B * GAMMA)
    token_V = torch.arange(1, vocab_size + 1, device=seed_B.device).mul_(GAMMA)
    bits_BV = mix(key_B[:, None] + token_V)
    # 52 bits and a half: inside (0, 1) and exact in float64.
    uniform_BV = (bits_BV >> 12).bitwise_and_(2**52 - 1).double().add_(0.5).mul_(2.0**-52)
    return uniform_BV.log_().neg_().log_().neg_()


def sequence_seed(seed: int, sequence: int) -> int:
    """The seed of a request's sequence number `sequence`, in [0, 2^40); number 0 has the request's own."""
    if sequence == 0:
        return seed
    return int(mix(mix(torch.tensor(seed)) + _signed(sequence * GAMMA))) & (2**40 - 1)


def fresh_seed() -> int:
    """A seed nobody knows, in [0, 2^31): short enough to be typed again."""
    return secrets.randbits(31)
