"""How long a training step takes, part by part, from what the hardware allows (Williams et al., 2009).

Each kernel takes as long as the slowest of what it needs: FLOPs at the peak, bytes at the memory's speed, exponentials
at the rate of these, each times the share of it that real kernels reach. Kernels run one after another; only
communication hides behind others.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptstar.errors import UserError
from gptstar.lab.planning.hardware import Hardware
from gptstar.lab.planning.memory import Setting, Weights
from gptstar.model.block import Block
from gptstar.model.choices import BLOCKS
from gptstar.model.config import ModelConfig
from gptstar.model.folded import folded_widths
from gptstar.model.positions import SCHEMES

# torch.compile makes one kernel of a chain of pointwise operations, each of which reads and writes memory otherwise.
FUSED = 0.5
# What functions cost, forward and backward, in exponentials of a softmax (measured on one core of an EPYC with AVX-512,
# 2026-11-21: 0.52 ns for that; vectorised libraries differ little in the order).
GELU, GELU_TANH, SIGMOID, NORM, SOFTMAX = (0.7, 1.6), (2.6, 2.8), (1.0, 1.5), (0.7, 0.6), (1.0, 0.3)
FUNCTIONS = {"gelu": GELU, "gelu_tanh": GELU_TANH, "swiglu": SIGMOID, "geglu": GELU}
# Bytes an optimizer reads and writes of a trained number: AdamW reads weight, gradient and two moments, writes three.
OPTIMIZER_BYTES = {"adamw": 28, "muon": 28, "lion": 20, "adafactor": 24, "adamw_8bit": 17}
NEWTON_SCHULZ = 5  # iterations of Muon's


@dataclass(frozen=True)
class Rates:
    """Of a device, as real kernels reach them: FLOP/s of matrix products and of attention, bytes/s, exponentials/s."""

    matmul: float
    attention: float
    memory: float
    functions: float
    muon: float  # FLOP/s of matrix products in bf16, which Muon's are in; in fp32 on a device without

    @classmethod
    def of(cls, hardware: Hardware, precision: str) -> Rates:
        """Raises UserError for a precision without a peak."""
        peak, shares = hardware.peak(precision), hardware.shares
        assert shares.matmul and shares.attention and shares.memory
        muon = next((hardware.peak(p) for p in ("bf16", "fp32") if p in hardware.peaks or p in hardware.half), peak)
        return cls(
            peak * shares.matmul,
            peak * shares.attention,
            hardware.bandwidth * shares.memory,
            hardware.functions or float("inf"),
            muon * shares.matmul,
        )


@dataclass(frozen=True)
class Part:
    """A part of a step on one device. exposed: seconds of it that hide behind nothing, None: all."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    exposed: float | None = None

    def __add__(self, other: Part) -> Part:
        return Part(self.seconds + other.seconds, self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Part:
        return Part(self.seconds * times, self.flops * times, self.bytes * times)

    @property
    def counted(self) -> float:
        """Seconds it adds to the step."""
        return self.seconds if self.exposed is None else self.exposed


def kernel(flops: float, n_byte: float, rate: float, rates: Rates, functions: float = 0.0) -> Part:
    """rate: FLOP/s of this kind of product."""
    return Part(max(flops / rate, n_byte / rates.memory, functions / rates.functions), flops, n_byte)


def compute_parts(config: ModelConfig, own: Weights, how: Setting, rates: Rates) -> dict[str, Part]:
    """Forward and backward of all microbatches of a step, and the optimizer, on one device."""
    again = how.recompute / config.n_layer  # of the blocks' forward pass
    parts = {
        "matrix products": _products(config, own, how, rates, again),
        "attention": _attention(config, how, rates, again),
        "norms and elementwise": _elementwise(config, own, how, rates, again),
        "head and loss": _head(config, own, how, rates),
    }
    return {name: part * how.n_micro for name, part in parts.items()} | {"optimizer": _optimizer(own, how, rates)}


def _products(config: ModelConfig, own: Weights, how: Setting, rates: Rates, again: float) -> Part:
    """Of the blocks' matrices: forward, the gradient of what they read, that of themselves."""
    once, s = 2.0 * own.matrices * how.tokens, how.width
    trained = own.trained_matrices / max(1, own.matrices)
    # Each number of a matrix is multiplied with as many tokens; what is read and written on the way:
    inputs = config.n_layer * how.tokens * (2 * config.d_model + config.d_attention + config.d_feedforward) * 2
    n_byte = (own.matrices + inputs) * s
    one = kernel(once, n_byte, rates.matmul, rates)
    # A gate's matrix of the context is multiplied whole, though half of it is 0.
    mixed = BLOCKS[config.block].mixing_flops(config, how.n_token) - _attention_flops(config, how)
    gates = kernel(float(config.n_layer * mixed * how.tokens), 0.0, rates.matmul, rates)
    return one * (2 + again + trained) + gates * (3 + again)


def _attention_flops(config: ModelConfig, how: Setting) -> int:
    """Forward, a token and layer: scores and their sum of values."""
    return 0 if config.block == "gmlp" else Block.mixing_flops(config, how.n_token)


def _attention(config: ModelConfig, how: Setting, rates: Rates, again: float) -> Part:
    forward = config.n_layer * _attention_flops(config, how) * how.tokens / how.n_tensor
    if not forward:
        return Part()
    A, s = config.d_attention + config.n_key_value * config.head_size, how.width
    scores = config.n_layer * config.n_head * how.n_token * how.tokens / how.n_tensor
    if how.kernel == "dense":
        # Products, and passes over the scores: written, scaled, biased, softmax (on CUDA in fp32), read again.
        passes = (36, 40) if s == 4 else (34, 36)
        moved = [kernel(0.0, p * scores * (FUSED if how.compiled else 1), 1.0, rates, scores * f)
                 for p, f in zip(passes, SOFTMAX, strict=True)]  # fmt: skip
        products = kernel(forward, 0.0, rates.matmul, rates)
        return (products + moved[0]) * (1 + again) + products * 2 + moved[1]
    share = 1.0
    if how.device == "cuda" and how.kernel in ("folded", "flex", "flex_flash"):
        share = 0.5  # what causality hides is skipped
    elif how.device == "cuda" and not _biased(config):
        share = 0.5
    if how.kernel == "folded":
        share *= folded_widths(config.head_size, False)[0] / config.head_size
    backward = 2.5 if how.device == "cuda" else 2.0  # the scores are made again; a CPU's share is measured without
    n_byte = config.n_layer * how.tokens * 2 * A * s / how.n_tensor
    if how.kernel == "sdpa" and _biased(config):
        n_byte += scores * s
    one = kernel(forward * share, n_byte, rates.attention, rates)
    return one * (1 + again) + kernel(forward * share * backward, 2 * n_byte, rates.attention, rates)


def _biased(config: ModelConfig) -> bool:
    """Whether some layer's scores have a dense bias or mask under torch's fused attention."""
    return any(SCHEMES[scheme].bias_kind != "none" for scheme in config.schemes) or any(config.windows)


def _elementwise(config: ModelConfig, own: Weights, how: Setting, rates: Rates, again: float) -> Part:
    """Norms, activations, residual additions, and whatever else reads and writes without multiplying matrices."""
    C, F, s, n = config.d_model, config.d_feedforward / how.n_tensor, how.width, how.tokens * config.n_layer
    cast = 0 if s == 4 else 6  # fp32 to half precision and back, where a norm's output is multiplied
    shared = config.block in ("parallel_shared", "gmlp", "amlp")
    norms, sums = (1, 1) if shared else (2, 2)
    f_norm, b_norm = NORM
    f_act, b_act = FUNCTIONS.get(config.activation, (0.0, 0.0))
    fused = FUSED if how.compiled else 1.0

    def moved(n_byte: float, functions: float = 0.0) -> Part:
        return kernel(0.0, n_byte * fused * n, 1.0, rates, functions * n)

    wide = 3 if config.activation in ("swiglu", "geglu") else 1
    forward = moved(norms * C * (8 + cast), norms * C * f_norm) + moved(sums * C * (8 + s))
    forward += moved(F * 2 * s * wide, F * f_act)
    # At a fork gradients are added up.
    backward = moved(norms * C * (12 + cast), norms * C * b_norm) + moved(sums * C * 12)
    backward += moved(F * 3 * s * wide, F * b_act)
    if config.block == "parallel_shared":  # joined before the second matrix, taken apart after the first
        A = config.d_attention / how.n_tensor
        forward += moved((A + F) * 2 * s)
        backward += moved((3 * A + F) * 2 * s)
    if config.block in ("gmlp", "amlp"):  # the gate: normed, biased, multiplied
        forward += moved(F * 7 * s, F * f_norm)
        backward += moved(F * 10 * s, F * b_norm)
    if "rotary" in config.schemes or config.qk_norm:
        turned = 2 * config.d_attention / how.n_tensor * (("rotary" in config.schemes) + config.qk_norm)
        forward, backward = forward + moved(turned * 6 * s), backward + moved(turned * 6 * s)
    if config.query_key_value_bias or config.feedforward_bias:  # a bias's gradient is a sum
        backward += moved((3 * config.d_attention / how.n_tensor + F + C) * s)
    # What a layer mixes with the first one's (`gptstar/model/mix.py`): each of both weighed, then added; backward the
    # gradients of both, and of their weights, which are sums of products.
    mixed = 4.0 * C * config.embedding_shortcut
    mixed += config.n_key_value * config.head_size * s / how.n_tensor * config.value_residual
    mixed *= (config.n_layer - 1) / config.n_layer
    forward, backward = forward + moved(7 * mixed), backward + moved(15 * mixed)
    # Embedding, final norm; copies of the weights in half precision; gradients of later microbatches added to the first
    ends = kernel(0.0, how.tokens * C * 40, 1.0, rates)
    casts = kernel(0.0, own.matrices * (12.0 if s == 2 else 0.0), 1.0, rates)
    sums_of = kernel(0.0, 12.0 * own.trained * (how.n_micro - 1) / how.n_micro, 1.0, rates)
    return forward * (1 + again) + backward + ends + casts + sums_of


def _head(config: ModelConfig, own: Weights, how: Setting, rates: Rates) -> Part:
    """Three products, and the passes over the logits between them (`gptstar/model/loss.py`), which stay uncompiled."""
    V, C, s = config.padded_vocab_size, config.d_model, how.width
    once = kernel(2.0 * V * C * how.tokens, V * C * s + how.tokens * C * s, rates.matmul, rates)
    logits = float(V * how.tokens)
    # Written; converted to fp32; largest; softmax; largest; converted back; read by two products.
    n_byte = logits * (s + (6 if s == 2 else 0) + 4 + 8 + 4 + (6 if s == 2 else 0) + 2 * s)
    passes = kernel(0.0, n_byte, 1.0, rates, logits * SOFTMAX[0])
    table = kernel(0.0, V * C * 16.0, 1.0, rates)  # the gradient of the head, scaled and added to the embedding's
    return once * 3 + passes + table


def _optimizer(own: Weights, how: Setting, rates: Rates) -> Part:
    """Clipping, then the optimizer's own pass; with loss scaling another before both."""
    n = own.trained / (how.n_share if how.parallel == "fsdp" else 1)
    n_byte = n * (
        12.0 + OPTIMIZER_BYTES.get(how.optimizer, OPTIMIZER_BYTES["adamw"]) + (8.0 if how.precision == "fp16" else 0.0)
    )
    part = kernel(0.0, n_byte, 1.0, rates)
    if how.optimizer == "muon":
        part += kernel(NEWTON_SCHULZ * own.orthogonalised, 0.0, rates.muon, rates)
    return part


def communication(
    config: ModelConfig, own: Weights, how: Setting, hardware: Hardware, backward: float
) -> dict[str, Part]:
    """Between devices, rings: an all-reduce sends 2 (n - 1) / n of the bytes, a gathering or scattering half of that.

    backward: seconds of the backward passes that it can hide behind, of one microbatch. Raises UserError where they
    have no link.
    """
    if how.n_share * how.n_tensor == 1:
        return {}
    if not hardware.link:
        raise UserError(
            f"hardware.link=0, but {how.n_share * how.n_tensor} devices of hardware={hardware.name} train together: "
            "set hardware.link to the bytes a second that one sends another"
        )
    shares = hardware.shares
    assert shares.link and shares.overlap is not None
    rate = hardware.link * shares.link
    parts: dict[str, Part] = {}
    n = how.n_share
    if n > 1 and how.parallel == "ddp":
        n_byte = 2 * (n - 1) / n * 4.0 * own.trained
        hidden = min(shares.overlap * n_byte / rate, backward)
        parts["all-reduce of gradients"] = _sent(n_byte, rate, hidden)
    if n > 1 and how.parallel == "fsdp":  # over the same link: what hides one has no room for the other
        gathered = 2 * (n - 1) / n * float(own.whole) * how.width  # of a microbatch: forward and again backward
        scattered = (n - 1) / n * 4.0 * own.trained  # after the last microbatch only
        behind_last = min(shares.overlap * scattered / rate, backward)
        each = shares.overlap * gathered / rate
        hidden = (how.n_micro - 1) * min(each, 1.5 * backward) + min(each, 1.5 * backward - behind_last)
        parts["all-gather of weights"] = _sent(gathered * how.n_micro, rate, hidden)
        parts["reduce-scatter of gradients"] = _sent(scattered, rate, behind_last)
    if how.n_tensor > 1:  # each sublayer's output forward, its input's gradient backward; nothing to hide behind
        sublayers = 1 if config.block == "parallel_shared" else 2
        times = 2 * sublayers * config.n_layer * how.n_micro + sublayers * how.recompute * how.n_micro
        n_byte = times * 2 * (how.n_tensor - 1) / how.n_tensor * how.tokens * config.d_model * how.width
        parts["all-reduce of activations"] = _sent(n_byte, rate, 0.0)
    return parts


def _sent(n_byte: float, rate: float, hidden: float) -> Part:
    """hidden: seconds behind other work."""
    seconds = n_byte / rate
    return Part(seconds, 0.0, n_byte, exposed=seconds - hidden)
