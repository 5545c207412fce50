"""What a device's memory holds in training, by part, told from the configuration alone.

Weights, gradients and moments are exact. Activations are what autograd keeps of an uncompiled forward pass; compiled
code keeps less, because it makes again what is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gptstar.model.adapters import freeze_all_but_adapters
from gptstar.model.config import ModelConfig
from gptstar.model.folded import folded_widths
from gptstar.model.loss import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS
from gptstar.model.meta import on_meta
from gptstar.model.positions import SCHEMES
from gptstar.model.projections import FusedLinear, Linear
from gptstar.model.transformer import GPT

CONTEXT = {"cuda": 0.7 * 2**30, "cpu": 0.35 * 2**30}  # of CUDA and its libraries; of a Python process with torch


@dataclass(frozen=True)
class Setting:
    """How a model is trained on one device.

    precision, kernel (of attention), compiled; device: cuda or cpu
    recompute   layers that keep no activations
    parallel    none, ddp or fsdp, over n_share shares of the batch; n_tensor: ranks that compute a layer together
    rows, n_token, n_micro   sequences of a microbatch, their tokens, microbatches of a step
    """

    precision: str
    device: str
    kernel: str
    compiled: bool = False
    recompute: int = 0
    parallel: str = "none"
    n_share: int = 1
    n_tensor: int = 1
    rows: int = 1
    n_token: int = 1
    n_micro: int = 1
    trainable: str = "all"
    optimizer: str = "adamw"

    @property
    def width(self) -> int:
        """Bytes of a number in matrix products."""
        return 4 if self.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """Of a microbatch."""
        return self.rows * self.n_token


@dataclass(frozen=True)
class Weights:
    """Numbers of a device, of parameters: all, trained ones, those of the matrices in blocks, the largest block's;
    FLOPs of one of Muon's iterations over the trained matrices; bytes of an optimizer's moments.
    """

    whole: int
    trained: int
    matrices: int
    trained_matrices: int
    block: int
    orthogonalised: float  # FLOPs
    moments: float  # bytes


def weights(config: ModelConfig, how: Setting) -> Weights:
    """Counted on a model without memory; with tensor parallelism a device's own, before fsdp cuts them up."""
    with on_meta():
        model = GPT(config)
    if how.trainable == "adapters":
        freeze_all_but_adapters(model)
    linear = {
        id(m.weight): [*m.weight_views(m.weight).values()] if isinstance(m, FusedLinear) else [m.weight]
        for m in model.modules()
        if isinstance(m, (FusedLinear, Linear))
    }
    orthogonalised = sum(_newton_schulz(p) for parts in linear.values() for p in parts if p.requires_grad)
    whole = trained = matrices = trained_matrices = 0
    blocks: dict[str, int] = {}
    moments = 0.0
    for name, parameter in model.named_parameters():
        matrix = id(parameter) in linear
        part = how.n_tensor if _is_cut(name) else 1
        own = parameter.numel() // part
        whole += own
        matrices += own * matrix
        if name.startswith("blocks."):
            layer = name.split(".")[1]
            blocks[layer] = blocks.get(layer, 0) + own
        if parameter.requires_grad:
            trained += own
            trained_matrices += own * matrix
            moments += MOMENTS.get(how.optimizer, MOMENTS["adamw"])(parameter, matrix) / part
    return Weights(whole, trained, matrices, trained_matrices, max(blocks.values()), orthogonalised, moments)


def _newton_schulz(matrix: Tensor) -> float:
    """FLOPs of an iteration on one of sides m <= n: X X^T, its square, and the product of a sum of these with X."""
    m, n = sorted(matrix.shape)
    return 4.0 * m**2 * n + 2.0 * m**3


def _is_cut(name: str) -> bool:
    """Whether tensor parallelism cuts a parameter up: the matrices of a block, and biases of what reads its input."""
    if not name.startswith("blocks."):
        return False
    return "inputs." in name or name.endswith(("output.weight", "outputs.weight", "down.weight"))


def _adafactor(parameter: Tensor, matrix: bool) -> float:
    if parameter.ndim < 2:
        return 4.0 * parameter.numel()
    *lead, rows, columns = parameter.shape
    return 4.0 * math.prod(lead) * (rows + columns)


def _eight_bits(parameter: Tensor, matrix: bool) -> float:
    n = parameter.numel()
    return 2.0 * (n + 4 * n / 256) if n >= 4096 and n % 256 == 0 else 8.0 * n  # a scale for every 256


# Bytes of what an optimizer remembers of a parameter; matrix: whether it is the weight of a linear layer. One that is
# not here, an idea of somebody's, is taken for AdamW, and such a block for a sequential one.
MOMENTS: dict[str, Callable[[Tensor, bool], float]] = {
    "adamw": lambda parameter, matrix: 8.0 * parameter.numel(),
    "muon": lambda parameter, matrix: (4.0 if matrix else 8.0) * parameter.numel(),
    "lion": lambda parameter, matrix: 4.0 * parameter.numel(),
    "adafactor": _adafactor,
    "adamw_8bit": _eight_bits,
}


# Numbers that autograd keeps of the feed-forward, in widths of it: what the activation reads and makes, and what `down`
# multiplies where that is neither.
KEPT_WIDTHS = {"relu": 1, "swiglu": 4, "geglu": 4}
# Of each block: inputs of norms and their outputs, each as wide as the stream.
KEPT_STREAMS = {"sequential": (2, 2), "parallel": (1, 2), "parallel_shared": (1, 1), "gmlp": (1, 1), "amlp": (1, 1)}


def attention_kept(config: ModelConfig, how: Setting) -> float:
    """Bytes a token and layer that autograd keeps of attention, its queries, keys and values included."""
    heads, shared, size, s = config.n_head, config.n_key_value, config.head_size, how.width
    turns = ("rotary" in config.schemes) + config.qk_norm
    kept = 1.0 * (config.d_attention + 2 * shared * size + turns * (heads + shared) * size) * s
    if how.kernel == "dense":  # copies of q, k and v; probabilities, on CUDA in fp32 and as they are multiplied
        shared_block = config.block == "parallel_shared"  # whose one matrix product keeps the originals alive
        copies = (kept if shared_block else config.d_attention * s) + 3 * config.d_attention * s
        if config.value_residual and not shared_block:  # views of them are mixed
            copies += (config.d_attention + 2 * shared * size) * s
        return copies + heads * how.n_token * (6 if s == 2 and how.device == "cuda" else s)
    kept += config.d_attention * s + 4 * heads  # output, logsumexp
    if how.kernel == "folded":  # q, k and v beside the bias's channels, and the output cut to size
        key, value = folded_widths(size, False)
        kept += ((heads + shared) * key + (heads + shared) * value) * s
    return kept


def layer_kept(config: ModelConfig, how: Setting) -> float:
    """Bytes a token that autograd keeps of one layer's forward pass, on a device; its input, in fp32, among them."""
    C, F, s = config.d_model, config.d_feedforward, how.width
    streams, normed = KEPT_STREAMS.get(config.block, (2, 2))
    cut = 1.0 * KEPT_WIDTHS.get(config.activation, 2) * F * s
    if config.block in ("gmlp", "amlp"):
        cut += 3 * F * s  # normed for the gate, the gate, and what it multiplies
    if config.block != "gmlp":
        cut += attention_kept(config, how)
    if config.block == "parallel_shared":
        cut += config.d_attention * s  # once more beside the feed-forward, as one matrix
    whole = streams * 4 * C + normed * (C * s + 8)
    if config.norm == "rmsnorm" and how.device == "cpu":
        whole += normed * 4 * C  # not fused there: x / rms as well
    if config.adapter_width:
        whole += 2 * (C + 2 * config.adapter_width) * s
    if config.sandwich_norm:
        whole += streams * (C * s + 8)
    return whole + cut / how.n_tensor


def mixed_kept(config: ModelConfig, how: Setting) -> float:
    """Bytes a token that every layer but the first keeps beside that, of what it mixes with the first one's."""
    stream = 4.0 * config.d_model if config.embedding_shortcut else 0.0
    if not config.value_residual or how.kernel == "dense":  # which copies values anyway
        return stream
    return stream + config.n_key_value * config.head_size * how.width / how.n_tensor


def activations(config: ModelConfig, how: Setting) -> float:
    """Bytes that one microbatch keeps for its backward pass, at the moment there are most."""
    layer, stream = layer_kept(config, how), 4.0 * config.d_model
    mixed = mixed_kept(config, how)
    rest = stream + 8 + config.d_model * how.width + 8  # the final norm's, the loss's gradient, tokens
    kept = config.n_layer * layer + (config.n_layer - 1) * mixed
    if how.recompute:  # their inputs only; while the last of them is made again, the layers above it are gone
        first, layer = how.recompute, layer + mixed
        kept = max(first * stream + (config.n_layer - first) * layer, (first - 1) * stream + layer)
        if config.value_residual:  # all that was made together with the first layer's values
            joined = config.d_feedforward if config.block == "parallel_shared" else 0
            width = config.d_attention + 2 * config.n_key_value * config.head_size + joined
            kept += width * how.width / how.n_tensor
    return how.tokens * (kept + rest)


def bias_bytes(config: ModelConfig, how: Setting) -> float:
    """Of dense biases of the scores, (heads, T, T), shared by the layers with the same position and window."""
    if how.kernel not in ("dense", "sdpa") or config.block == "gmlp":
        return 0.0
    kinds = {(scheme, config.window(layer)) for layer, scheme in enumerate(config.schemes)}
    biased = {scheme for scheme in config.schemes if SCHEMES[scheme].bias_kind != "none"}
    heads = sum(config.n_head if scheme in biased else 1 for scheme, window in kinds if scheme in biased or window)
    return float(heads * how.n_token**2 * how.width) / how.n_tensor


def loss_bytes(config: ModelConfig, how: Setting) -> tuple[float, float]:
    """Of head and loss: what stays until their backward pass (the gradient of the head's matrix, in fp32; in half
    precision the matrix as it is multiplied), and what comes and goes (logits and probabilities of one chunk).
    """
    V = config.padded_vocab_size
    elements = CHUNK_ELEMENTS if how.device == "cpu" else GPU_CHUNK_ELEMENTS
    n_chunk = max(1, round(how.tokens * V / elements))
    rows = -(-how.tokens // n_chunk)
    kept = V * config.d_model * (4.0 + (2.0 if how.width == 2 else 0.0))
    more = 2 if config.logit_softcap else 0
    return kept, rows * V * (8.0 + 4 * more + (2.0 if how.width == 2 else 0.0))


def memory(config: ModelConfig, how: Setting) -> dict[str, float]:
    """{part: bytes} of a device."""
    own = weights(config, how)
    n = how.n_share if how.parallel == "fsdp" else 1
    gradients = 4.0 * own.trained / n
    if how.parallel == "fsdp" and how.n_micro > 1:
        gradients += 4.0 * own.trained  # not exchanged before the last microbatch, so whole until then
    half = 0.0
    if how.width == 2 and how.parallel != "fsdp":
        half = 2.0 * own.matrices  # autocast's copies
    gathered = 0.0
    if how.parallel == "fsdp":  # two blocks, the next one being fetched, and what is in none
        outside = own.whole - config.n_layer * own.block
        gathered = 2.0 * own.block * (how.width + 4) + 4.0 * max(0, outside)
    kept, passing = loss_bytes(config, how)
    widest = config.d_attention + 2 * config.n_key_value * config.head_size + 2 * config.d_feedforward
    backward = how.tokens * (2 * widest * how.width / how.n_tensor + 12 * config.d_model)
    parts = {
        "weights": 4.0 * own.whole / n,
        "gradients": gradients,
        "optimizer moments": own.moments / n,
        "weights in half precision": half,
        "gathered weights": gathered,
        "activations": activations(config, how),
        "attention bias": bias_bytes(config, how),
        "head and loss": kept,
        "logits, or a layer's backward pass": max(passing, backward),  # one after the other
        "libraries": CONTEXT[how.device],
    }
    return {part: n_byte for part, n_byte in parts.items() if n_byte}


def total(config: ModelConfig, how: Setting) -> float:
    """Bytes of a device, everything together."""
    return sum(memory(config, how).values())
