"""The one place that picks attention kernels, for a stated reason."""

from __future__ import annotations

from gptstar.model.config import ModelConfig
from gptstar.model.flex import FlexAttention, FlexFlashAttention
from gptstar.model.folded import FoldedAttention
from gptstar.model.kernels import Case, DenseAttention, Kernel, SDPAttention
from gptstar.model.positions import SCHEMES

KERNELS: dict[str, type[Kernel]] = {
    "dense": DenseAttention,
    "sdpa": SDPAttention,
    "folded": FoldedAttention,
    "flex": FlexAttention,
    "flex_flash": FlexFlashAttention,
}


def pick_kernel(case: Case, choice: str = "auto") -> str:
    """The name of the kernel to use. Raises ValueError for a choice that cannot be used with whole sequences.

    With a cache or padding, where nothing is trained, a choice that cannot be used gives way to auto, which is:

    - Whole sequences on CUDA, a bias linear in the distance (ALiBi), no mask beside causality, no soft-cap: folded. It
      is the only one that leaves SDPA its fastest kernels.
    - Other masks or a soft-cap there, in training or compiled: flex, which skips hidden blocks and makes no dense bias.
      It is compiled for a shape, so uncompiled evaluation of many lengths does without.
    - All else: SDPA, and dense where a soft-cap rules it out. On a CPU SDPA is the only fused kernel that also has a
      backward pass with a bias. Slopes in training are of these: flex sums their gradient by atomic additions of every
      score to one number a head.

    The two lines for CUDA are reasoned, not measured: `benchmarks/attention.py` is to confirm or correct them on a GPU.
    """
    if choice != "auto":
        obstacle = KERNELS[choice].obstacle(case)
        if obstacle is None:
            return choice
        if case.whole:
            usable = ", ".join(name for name, kernel in KERNELS.items() if kernel.obstacle(case) is None)
            raise ValueError(f"attention kernel {choice} cannot be used {obstacle}: choose auto or one of {usable}")
    if case.device == "cuda" and case.whole and not case.trains_slopes:
        if case.scheme.bias_kind == "linear" and FoldedAttention.obstacle(case) is None:
            return "folded"
        masked = case.window or case.documents or case.config.score_softcap
        if masked and (case.gradients or case.compiled) and FlexAttention.obstacle(case) is None:
            return "flex"
    return "dense" if case.config.score_softcap else "sdpa"


def check_kernel(choice: str, config: ModelConfig, device: str, n_token: int, documents: bool) -> None:
    """Raises ValueError where a model cannot be trained with `choice` on sequences of n_token tokens."""
    for layer, name in enumerate(config.schemes):
        window = config.window(layer)
        case = Case(config, SCHEMES[name](config), window if window < n_token else 0, device, n_token, documents)
        pick_kernel(case, choice)
